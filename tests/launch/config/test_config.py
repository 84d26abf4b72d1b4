import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from rankmixer.launch.config.config import Config, check_world, dump_config, json_schema, load_config, token_group

TREE = {
    "feature_schema": {
        "features": {
            "user": {"kind": "id", "range": 10, "dim": 8, "group": "user"},
            "price": {"kind": "number", "group": "item"},
        },
        "labels": {"click": {}},
    },
    "data": {"train": "nowhere", "batch_size": 12},
}


def write(tmp_path: Path, tree: object) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


def test_defaults_and_overrides(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, TREE), ["optimizer.dense.lr=0.5", "data.train=[a, b]", "model.layers=3"])
    assert config.optimizer.dense.lr == 0.5
    assert config.data.train == ["a", "b"]
    head = config.model.head()
    assert (head.tokens, head.width, head.layers, head.expansion) == (8, 32, 3, 4)


def test_the_resolved_tree_rebuilds_the_run(tmp_path: Path) -> None:
    schema_path = tmp_path / "schema.yaml"
    schema_path.write_text(yaml.safe_dump(TREE["feature_schema"]))
    config = load_config(write(tmp_path, {**TREE, "feature_schema": str(schema_path)}))
    schema_path.unlink()
    assert Config.model_validate(dump_config(config)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.bach_size=3"], r"run.yaml: data: unknown key 'bach_size'; did you mean 'batch_size'"),
        (["optimizer.dense.lr=fast"], r"optimizer.dense.lr: .*number.*found 'fast'"),
        (["model.width=30"], r"model: .*T = 8.*D = 30|model: .*8.*30"),
        (["model.preset=tinny"], r"model: .*tinny.*tiny"),
        (["model.tokenizer=per_group"], r"model.tokens is 8, but .* 2 feature groups \['user', 'item'\]"),
        (["plan.tables.usr.sharding=row_wise"], r"plan.tables names \['usr'\]; the schema's tables are \['user'\]"),
        (["plan.tables.user.sharding=data_parallel"], r"plan.tables.user.sharding: .*table_wise"),
        (["parallel.token_group=0"], r"^[^\n]*parallel.token_group: expected auto, or a number of ranks .*; found 0$"),
        (["parallel.token_group=aut"], r"^[^\n]*parallel.token_group: expected auto, or a number .*; found 'aut'$"),
        (
            ["model.arch=tokenmixer_large", "model.mixing_gain=true"],
            r"model: arch = tokenmixer_large and mixing_gain = tr",
        ),
        (["model.expansion=0.001"], r"model: expansion \* width must be at least 1, found 0.032"),
        (["optimizer=papr"], r"run.yaml: optimizer: expected a section or one of paper; found 'papr'$"),
        (["lr"], r"override 'lr': expected section.key=value"),
        (["data.train.x=1"], r"override 'data.train.x=1': train holds a value"),
        (["feature_schema=missing.yaml"], r"missing.yaml: cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, TREE), overrides)


def test_a_missing_file_and_a_file_that_is_not_a_tree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.yaml: cannot be read"):
        load_config("nowhere.yaml")
    with pytest.raises(ValueError, match=r"run.yaml: expected sections .* found list"):
        load_config(write(tmp_path, [1]))


def test_a_world_that_does_not_divide_the_batch_is_refused_with_sizes_that_do(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, TREE))
    check_world(config, 4)
    with pytest.raises(
        ValueError,
        match=r"data.batch_size is 12, which 5 ranks do not divide; use 10 or 15, or .*\[1, 2, 3, 4, 6, 12\]",
    ):
        check_world(config, 5)


def test_a_token_group_fits_the_model_and_the_ranks_or_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TREE)

    def group(world_size: int, local_world_size: int, *overrides: str) -> int:
        return token_group(load_config(path, overrides), world_size, local_world_size)

    auto = "parallel.token_group=auto"
    assert group(4, 4) == 1
    assert [group(W, local, auto) for W, local in ((1, 1), (2, 2), (6, 3), (12, 6), (32, 16))] == [1, 2, 1, 2, 8]
    for alone in ("model.ablation=all_concat", "model.arch=mlp", "optimizer.dense.kind=muon"):
        assert group(8, 8, auto, alone) == 1
    assert group(6, 3, "parallel.token_group=2") == 2
    refused = {
        ("parallel.token_group=3",): "parallel.token_group is 3: tokens = 8 cannot be shared evenly among the 3 ranks",
        ("parallel.token_group=4",): r"4, which does not divide the number of ranks, 6; use one of \[1, 2\], or a",
        ("parallel.token_group=2", "model.arch=mlp"): "is 2, but model.arch = mlp has no tokens; use 1",
        ("parallel.token_group=2", "model.ablation=all_share"): "2: ablation = all_share reads all tokens at once",
        ("parallel.token_group=2", "optimizer.dense.kind=muon"): "optimizer.dense.kind is muon, which wants whole",
    }
    for overrides, text in refused.items():
        with pytest.raises(ValueError, match=text):
            group(6, 6, *overrides)


def test_json_schema_lets_an_editor_check_a_file() -> None:
    schema = json.loads(json_schema())
    jsonschema.validate({**TREE, "feature_schema": "a path"}, schema)
    jsonschema.validate(TREE, schema)
    age = {"kind": "time", "part": "age", "dim": 4, "reference_time": "2024-06-01", "boundaries": ["1h", 86400]}
    transforms = {"features": {"n": {"kind": "number", "standardise": "learn"}, "age": age}, "labels": {"click": {}}}
    jsonschema.validate({**TREE, "feature_schema": transforms}, schema)
    age["boundaries"] = ["1 year"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**TREE, "feature_schema": transforms}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**TREE, "modle": {}}, schema)


def test_names_that_modules_do_not_take_are_refused(tmp_path: Path) -> None:
    features = {"type": {"kind": "id", "range": 10, "dim": 8}, "kind": {"kind": "id", "range": 10, "dim": 8}}
    tree = {**TREE, "feature_schema": {"features": features, "labels": {"click": {}}}}
    with pytest.raises(ValueError, match=r"tables \['type'\] .*ModuleDict does not take; name another `table:`"):
        load_config(write(tmp_path, tree))


def test_a_named_optimizer_can_be_overridden(tmp_path: Path) -> None:
    config = write(tmp_path, {**TREE, "optimizer": "paper"})
    optimizer = load_config(config, ["optimizer.clip_norm=1", "optimizer.dense.lr=0.5"]).optimizer
    assert (optimizer.clip_norm, optimizer.dense.kind, optimizer.dense.lr) == (1, "rmsprop", 0.5)
    assert load_config(config).optimizer.dense.lr == 0.01


def test_a_named_optimizer_is_the_papers() -> None:
    optimizer = Config.model_validate({**TREE, "optimizer": "paper"}).optimizer
    assert (optimizer.dense.kind, optimizer.dense.lr, optimizer.sparse.kind) == ("rmsprop", 0.01, "adagrad")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.early_stopping.patience=1"],
            r"train.early_stopping is given, but data.evaluate is not .*; give data.ev",
        ),
        (["metrics.select=ne"], r"metrics.select is ne, but data.evaluate is not given, .*; give data.evaluate"),
        (
            ["metrics.select=gauc", "data.evaluate=there"],
            r"metrics.select is gauc, but metrics.group is not given, .*; give metrics.group, or select auc",
        ),
        (
            ["model={arch: mlp}", "parallel={token_group: auto, exchange: bf16}"],
            r"parallel.exchange is bf16, but model.arch is mlp, which has no tokens .*; remove it",
        ),
        (
            ["model={arch: dcn, layers: 3, global_token: false}"],
            r"model.layers is 3, model.global_token is false, but model.arch is dcn, .*; remove them, or .* model='",
        ),
    ],
)
def test_a_key_that_another_makes_meaningless_is_refused_with_both(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, TREE), overrides)
