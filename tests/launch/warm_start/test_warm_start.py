"""A new model begins with another one's weights: by name, row by row, on other ranks and under another plan."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rankmixer.embeddings.sharding import Cluster
from rankmixer.launch.config.config import Config, dump_config
from rankmixer.launch.model.build import Build, build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.learnt import save_schema
from rankmixer.launch.rows.paths import find_source
from rankmixer.launch.warm_start.row_maps import table_rows
from rankmixer.launch.warm_start.transfer import flat
from rankmixer.launch.warm_start.warm_start import warm_start
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.parts import pieces
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.ranks import run_ranks
from tests.pipeline.checkpoint.test_tables import full

TABLE = "embeddings.embedding_bags.embedding_bags.{}.weight"
BEFORE: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "range": 20, "dim": 16, "group": "user", "on_bad": "reserve"},
    "city": {"kind": "id", "vocabulary": "before.txt", "dim": 8, "group": "user"},
    "tags": {"kind": "id_list", "buckets": 11, "dim": 4, "group": "item"},
    "price": {"kind": "number", "group": "item"},
    "same": {"kind": "id", "range": 7, "dim": 4, "group": "item"},
    "age": {"kind": "number", "boundaries": [1.0, 3.0], "dim": 4, "group": "context"},
    "gone": {"kind": "id", "range": 5, "dim": 4, "group": "last"},
}
AFTER: dict[str, dict[str, Any]] = {
    **{name: feature for name, feature in BEFORE.items() if name != "gone"},
    "user": BEFORE["user"] | {"range": 25},
    "city": BEFORE["city"] | {"vocabulary": "after.txt"},
    "tags": BEFORE["tags"] | {"buckets": 13},
    "age": BEFORE["age"] | {"boundaries": [0.5, 2.0, 3.5]},
    "added": {"kind": "id", "range": 5, "dim": 4, "group": "last"},
}


@pytest.fixture(autouse=True)
def vocabularies(tmp_path: Path) -> None:
    Path(tmp_path, "before.txt").write_text("a\nb\nc\nd\n")
    Path(tmp_path, "after.txt").write_text("d\nx\nb\n")


def schema(folder: str, features: dict[str, Any], tasks: list[str]) -> Schema:
    tree = {"features": features, "labels": {task: {} for task in tasks}}
    return Schema.model_validate(tree, context={"folder": folder})


def config(folder: str, of_schema: Schema, sharding: str | None, **model: Any) -> Config:
    return Config.model_validate(
        {
            "feature_schema": of_schema,
            "data": {"train": "unused", "batch_size": 8, "evaluate_batch_size": 8},
            "model": model
            if "arch" in model
            else {"tokens": 4, "width": 16, "layers": 1, "tokenizer": "per_group"} | model,
            "plan": {"tables": {"user": {"sharding": sharding}}} if sharding else {},
            "run": {"directory": f"{folder}/new", "warm_start": f"{folder}/old"},
        }
    )


def fill(state: dict[str, Any]) -> None:
    """Give every element a value that its name and its place in the whole tensor say: see `value_at`."""
    for name, value in flat(state):
        for piece, offsets in pieces(value):
            place = torch.full(piece.shape, base(name))
            for dim, (offset, stride) in enumerate(zip(offsets, strides(value.shape), strict=True)):
                index = (offset + torch.arange(piece.shape[dim])) * stride
                place += index.view(-1, *[1] * (piece.dim() - dim - 1))
            piece.copy_(place)


def base(name: str) -> float:
    return float(zlib.crc32(name.encode()) % 1000)


def strides(shape: torch.Size) -> list[int]:
    return [int(torch.tensor(shape[dim + 1 :]).prod()) for dim in range(len(shape))]


def whole(name: str, *shape: int) -> torch.Tensor:
    return base(name) + torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float32).view(shape)


def built_from(run: Config, rank: int, world_size: int) -> tuple[Build, Ranks]:
    assert dist.group.WORLD is not None
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), dist.group.WORLD)
    return build(run, ranks, Cluster("cpu", world_size, world_size, 0, 8 << 30), total_steps=9), ranks


def save_old(rank: int, world_size: int, folder: str) -> None:
    old = schema(folder, BEFORE, ["click", "like"])
    run = config(folder, old, "column_wise")
    built, _ = built_from(run, rank, world_size)
    built.optimizer.init_dense_state()
    state = built.state()
    with torch.no_grad():
        fill(state)
    meta = {"config": dump_config(run), "schema_digest": old.digest()}
    if rank == 0:
        save_schema(f"{folder}/old/checkpoints/schema", old.contents(), old)
    Checkpoints(f"{folder}/old/checkpoints").save(5, state, meta, metric=0.5)


def warmed(rank: int, world_size: int, folder: str) -> None:
    new = schema(folder, AFTER, ["like", "buy", "click"])
    built, ranks = built_from(run := config(folder, new, "row_wise"), rank, world_size)
    before = full({"model": built.state()["model"]})
    report = warm_start(run, built, ranks)
    after = full(built.state())
    before = {name: before.get(name, torch.zeros_like(value)) for name, value in after.items()}

    def check(name: str, row_N: list[int], saved: torch.Tensor) -> None:
        """Rows of `name` are those of `saved`, where -1 says that they are as they were."""
        for row, source in enumerate(row_N):
            expected = before[name][row] if source < 0 else saved[source]
            torch.testing.assert_close(after[name][row], expected, msg=f"{name}, row {row}")

    maps = {
        "user": ([*range(20), *[-1] * 5, 20], 21, 16),
        "city": ([3, -1, 1, 4], 5, 8),  # the last row is reserved
        "tags": ([-1] * 13, 11, 4),
        "same": (list(range(7)), 7, 4),
        "age": ([0, 1, 1, 2], 3, 4),  # the middle of a bucket: -inf, 1.25, 2.75, inf
        "added": ([-1] * 5, 5, 4),
    }
    for table, (row_N, rows, dim) in maps.items():
        parameter = TABLE.format(table)
        check(f"model.{parameter}", row_N, whole(f"model.{parameter}", rows, dim))
        momentum = f"optimizer.state.{parameter}.{table}.momentum1"
        blocks = Checkpoints(f"{folder}/old/checkpoints").tensors("step-00000005").tensors
        number = blocks[f"optimizer.state.{parameter}.{table}.momentum1"].size[0] // rows if table in BEFORE else 1
        check(momentum, row_N, whole(momentum, number, rows).mean(dim=0))
        assert table != "user" or number == 2  # column-wise then, row-wise now
    assert report["mapped"].pop(TABLE.format("user")) == "21 of 26 rows"
    assert report["mapped"].pop(TABLE.format("city")) == "3 of 4 rows"
    assert report["mapped"].pop(TABLE.format("age")) == "4 of 4 rows"
    assert report["new"] == {
        TABLE.format("tags"): "buckets: 11, seed 0 there, 13, seed 0 here; other ids share a row",
        TABLE.format("added"): "not in the checkpoint",
    }
    assert report["left_over"] == [TABLE.format("gone"), TABLE.format("tags")]

    # Tokens: three of four are made from the same columns; rows for each: 24, the widest piece.
    tokens = whole("model.head.tokenizer.tokens_ID", 96, 16)
    check(
        "model.head.tokenizer.tokens_ID", [*range(24), *range(24, 33), *[-1] * 15, *range(48, 52), *[-1] * 44], tokens
    )
    heads = whole("model.head.heads.layers.0.weight_KIO", 2, 16, 1)
    check("model.head.heads.layers.0.weight_KIO", [1, -1, 0], heads)
    assert report["mapped"] == {
        "head.tokenizer.tokens_ID": "37 of 96 rows",
        "head.heads.layers.0.weight_KIO": "2 of 3 rows",
        "head.heads.layers.0.bias_KO": "2 of 3 rows",
    }
    # What is taken as a whole comes with its moments and their count, the rest begins with none.
    up = "head.blocks.0.ffn.up_TDM"
    assert up in report["taken"]
    for name in (f"model.{up}", f"optimizer.state.{up}.exp_avg", f"optimizer.state.{up}.step"):
        assert torch.equal(after[name], whole(name, *after[name].shape)), name
    for state in ("exp_avg", "exp_avg_sq", "step"):
        assert not after[f"optimizer.state.head.tokenizer.tokens_ID.{state}"].any()
        assert not after[f"optimizer.state.head.heads.layers.0.bias_KO.{state}"].any()

    nothing = schema(folder, {"other": {"kind": "id", "range": 3, "dim": 4}}, ["click"])
    run = config(folder, nothing, None, arch="mlp")
    with pytest.raises(ValueError, match=r"nothing of .*step-00000005 fits this model \(.*other.weight: not in the ch"):
        warm_start(run, *built_from(run, rank, world_size))


def save_and_warm(rank: int, world_size: int, folder: str) -> None:
    save_old(rank, world_size, folder)
    warmed(rank, world_size, folder)


@pytest.mark.slow
def test_from_two_ranks_to_two_and_to_one(tmp_path: Path) -> None:
    run_ranks(2, save_and_warm, tmp_path, str(tmp_path))
    run_ranks(1, warmed, tmp_path, str(tmp_path))


def test_rows_of_other_ids_are_not_taken(tmp_path: Path) -> None:
    same, hashed, words = BEFORE["same"], BEFORE["tags"] | {"kind": "id"}, BEFORE["city"]
    hour = {"kind": "time", "part": "hour", "dim": 4}

    def asked(feature: dict[str, Any], **others: Any) -> Schema:
        return schema(str(tmp_path), {"f": feature, "g": same, **others}, ["click"])

    for here, there, reason in [
        (hashed | {"dim": 8}, hashed, "dim 4 there, 8 here"),
        (hashed | {"seed": 1}, hashed, "buckets: 11, seed 0 there, 11, seed 1 here; other ids share a row"),
        (same, hashed, "ids are formed by buckets there, by range here"),
        (hashed | {"buckets": None, "managed": 5}, hashed, "ids are formed by buckets there, by managed here"),
        (hour | {"timezone": "Asia/Tokyo"}, hour, "hour: ('UTC',) there, ('Asia/Tokyo',) here; other ids share a row"),
    ]:
        assert table_rows(asked(here), asked(there), "f") == reason
    cross = {"kind": "cross", "of": ["f", "g"], "buckets": 9, "dim": 4}
    one, other = (asked(hashed | {"buckets": buckets}, c=cross) for buckets in (11, 12))
    assert table_rows(one, one, "c").found == 9  # type: ignore[union-attr]
    assert str(table_rows(one, other, "c")).startswith("cross: ")
    context = {"vocabularies_to_be_written": True}
    unknown = Schema.model_validate(asked(words).model_dump(mode="json"), context=context)
    assert "the folder schema beside its checkpoints is missing" in str(table_rows(asked(words), unknown, "f"))


def test_where_a_warm_start_is_found(tmp_path: Path) -> None:
    root = f"{tmp_path}/run/checkpoints"
    for step, metric in ((1, None), (2, 0.5), (3, 0.4)):
        Checkpoints(root).save(step, {"model": {"w": torch.zeros(2)}}, {}, metric=metric)
        best = "step-00000001" if step == 1 else "step-00000002"
        for path in (f"{tmp_path}/run", f"{tmp_path}/run/", root):
            assert find_source(path) == (root, best)
    assert find_source(f"{root}/step-00000003/") == (root, "step-00000003")
    with pytest.raises(ValueError, match=r"step-00000009: found step-00000001, .*, step-00000003 in .*; name one"):
        find_source(f"{root}/step-00000009")
    with pytest.raises(ValueError, match=r"run.warm_start is .*: found no checkpoint there; expected the directory of"):
        find_source(str(tmp_path))
