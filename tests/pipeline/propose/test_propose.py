"""What the import proposes: vocabularies and hashes that keep values apart, ids or quantities, labels and leaks."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankmixer.launch.cli import main, parser
from rankmixer.launch.config.config import load_config
from rankmixer.pipeline.propose.column_facts import column_facts
from rankmixer.pipeline.propose.hash_check import SMALL, choose_hash, shared
from rankmixer.pipeline.propose.integer_meaning import meaning
from rankmixer.pipeline.propose.propose import Proposer
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.schema.vocabulary import read_vocabulary
from rankmixer.pipeline.sources.csv_import import import_csv
from rankmixer.pipeline.sources.csv_like import import_like
from rankmixer.pipeline.sources.parquet_import import import_parquet


def proposed(tmp_path: Path, **columns: Any) -> tuple[Schema, str]:
    """The schema and its text for columns beside a label."""
    rows = len(next(iter(columns.values())))
    if "click" not in columns:
        columns["click"] = [row % 2 for row in range(rows)]
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    import_parquet([str(tmp_path / "in.parquet")], str(tmp_path / "out"), labels=["click"])
    return load_config(str(tmp_path / "out/run.yaml")).feature_schema, (tmp_path / "out/schema.yaml").read_text()


def test_values_that_were_counted_have_rows_of_their_own(tmp_path: Path) -> None:
    devices = ["mobile"] * 5 + ["desktop"] * 3 + ["tablet"] * 2
    schema, _ = proposed(tmp_path, device=devices * 40, genres=["a|b", "b", "c|a"] * 133 + ["a"])
    assert schema.features["device"].words == ("mobile", "desktop", "tablet")  # type: ignore[union-attr]
    assert set(schema.features["genres"].words) == {"a", "b", "c"}  # type: ignore[union-attr]
    assert schema.tables["device"].rows == 4  # and one for what is unknown


def test_vocabularies_and_numbers_are_of_the_training_rows_alone(tmp_path: Path) -> None:
    rows = 500
    times = pa.array(np.datetime64("2024-06-01", "us") + np.arange(rows).astype("timedelta64[h]"))
    city = ["old"] * 200 + ["Rome"] * 200 + ["new"] * 100
    size = [1.5] * 200 + [2.5] * 150 + [None] * 50 + [1000.5] * 100
    codes = [1, 2] * 200 + [9] * 100
    table = pa.table({"at": times, "city": city, "size": size, "code": codes, "click": [0, 1] * 250})
    pq.write_table(table, tmp_path / "in.parquet")
    import_parquet([str(tmp_path / "in.parquet")], str(tmp_path / "out"), time="at")
    schema = load_config(str(tmp_path / "out/run.yaml")).feature_schema
    assert read_vocabulary(str(tmp_path / "out/vocabulary/city.txt")) == ("Rome", "old")
    assert schema.features["size"].default == pytest.approx(1.929, abs=1e-3)  # type: ignore[union-attr]
    assert schema.features["code"].range == 3  # type: ignore[union-attr]
    assert "1.5 to 2.5; 50 empty" in (tmp_path / "out/schema.yaml").read_text()


@pytest.mark.parametrize("kind", ["even", "skewed", "integers"])
def test_a_hash_is_chosen_by_what_it_does_to_the_values(kind: str) -> None:
    distinct = 12_000
    values = pa.array(np.arange(distinct) * 7 if kind == "integers" else [f"value {n}" for n in range(distinct)])
    counts = np.ones(distinct) if kind == "even" else 1e6 / np.arange(1, distinct + 1)
    counts = counts.astype(np.int64)
    chosen = choose_hash(values, counts, distinct, int(counts.sum()), dim=16)
    again = shared(values, counts, distinct, int(counts.sum()), chosen.buckets, chosen.seed)
    assert chosen == again
    assert chosen.shared <= SMALL
    fewer = [shared(values, counts, distinct, int(counts.sum()), chosen.buckets // 2, seed) for seed in range(8)]
    assert chosen.buckets == 65_536 or min(found.shared for found in fewer) > SMALL
    # Of twice as many values as were given the others collide as chance has it.
    more = shared(values, counts, 2 * distinct, 2 * int(counts.sum()), chosen.buckets, chosen.seed)
    assert more.shared > chosen.shared
    assert more.expected == pytest.approx(2 * chosen.expected, rel=0.2)


def test_what_hashing_costs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = [f"item {row % 13_000}" for row in range(30_000)]
    schema, _ = proposed(tmp_path, item=item)
    feature = schema.features["item"]
    printed = capsys.readouterr().out
    assert feature.vocabulary is None  # type: ignore[union-attr]
    assert "hashed item: 1" in printed
    assert "share a row with another value, " in printed
    assert not (tmp_path / "out/vocabulary").exists()
    values, counts = np.unique(pq.read_table(tmp_path / "out/train")["item"].to_numpy(), return_counts=True)
    found = shared(pa.array(values), counts, len(values), counts.sum(), feature.buckets, feature.seed)  # type: ignore[union-attr,arg-type]
    assert f"; {found.shared:.1%} of the lookups" in printed


def test_counts_that_are_spilled_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"v{row * 7919 % 5000}" for row in range(20_000)]
    schema = pa.schema({"x": pa.string()})

    def batches(_: Any) -> Any:
        for start in range(0, len(values), 1000):
            yield pa.record_batch({"x": values[start : start + 1000]})

    whole = column_facts(batches, schema, tmp_path / "a")["x"]
    monkeypatch.setattr("rankmixer.pipeline.learn.word_counts.WordCounts._spill", spilling := Spilling())
    monkeypatch.setattr("rankmixer.pipeline.propose.column_facts.WordCounts", spilling.counts)
    spilled = column_facts(batches, schema, tmp_path / "b")["x"]
    assert spilling.times > 1
    assert spilled.values.equals(whole.values)
    assert (spilled.distinct, spilled.lookups) == (5000, 20_000)
    np.testing.assert_array_equal(spilled.counts, whole.counts)


class Spilling:
    """WordCounts with little memory, and how often they spilled."""

    def __init__(self) -> None:
        from rankmixer.pipeline.learn import word_counts

        self.times = 0
        self._spill = word_counts.WordCounts._spill
        self._class = word_counts.WordCounts

    def __get__(self, counts: Any, _: Any) -> Any:
        def spill() -> None:
            self.times += 1
            self._spill(counts)

        return spill

    def counts(self, folder: Path, _: int) -> Any:
        return self._class(folder, 20_000)


def test_lists_of_fractions_are_no_ids(tmp_path: Path) -> None:
    batch = pa.record_batch({"x": [[0.5, 1.5], [2.0]] * 10, "y": [[1, 2], [3]] * 10})
    proposer = Proposer()
    for column in column_facts(lambda names: iter([batch.select(names)]), batch.schema, tmp_path).values():
        proposer.add(column)
    assert proposer.made.notes == ["left out x: lists of double; lists hold integers or text"]
    assert proposer.made.lines[1].startswith("  y: {kind: id_list, range: 4")


RANDOM = np.random.default_rng(0)
INTEGERS: list[tuple[str, np.ndarray, str]] = [
    ("age", RANDOM.integers(17, 90, 2000), "number"),
    ("wage per hour", RANDOM.choice([0, 0, 0, 500, 750, 1100], 2000), "number"),
    ("capital-gain", np.where(RANDOM.random(2000) < 0.9, 0, RANDOM.integers(100, 99999, 2000)), "number"),
    ("fnlwgt", RANDOM.integers(12_285, 1_484_705, 2000), "number"),
    ("hours-per-week", RANDOM.integers(1, 99, 2000), "number"),
    ("num_children", RANDOM.integers(0, 6, 2000), "number"),
    ("watchTime", RANDOM.integers(0, 4000, 2000), "number"),
    ("userId", RANDOM.integers(1, 900, 2000), "id"),
    ("item_id", RANDOM.integers(1, 10**9, 400)[RANDOM.integers(0, 400, 2000)], "id"),
    ("zip", RANDOM.integers(10_000, 99_999, 300)[RANDOM.integers(0, 300, 2000)], "id"),
    ("age_group", RANDOM.integers(0, 7, 2000), "id"),
    ("education-num", RANDOM.integers(1, 17, 2000), "id"),
    ("year", RANDOM.integers(94, 96, 2000), "id"),
    ("veterans benefits", RANDOM.integers(0, 3, 2000), "id"),
    ("c1", RANDOM.integers(-1, 20, 2000), "id"),  # -1 stands for unknown
    ("c2", RANDOM.integers(-300, 300, 2000), "number"),
    ("c3", (RANDOM.lognormal(8, 1.5, 2000) // 10 * 10).astype(int), "number"),  # amounts, rounded
    ("c6", RANDOM.integers(-(2**63), 2**63 - 1, 300)[RANDOM.integers(0, 300, 2000)], "id"),  # hashes
    ("c7", RANDOM.integers(2**63, 2**64 - 1, 300, np.uint64)[RANDOM.integers(0, 300, 2000)], "id"),
    ("c4", RANDOM.permutation(800)[RANDOM.integers(0, 800, 2000)], "both"),
    ("c5", (RANDOM.zipf(1.5, 2000) % 10_000).astype(int), "number"),  # most at the least value, thinning out
]


@pytest.mark.parametrize(("name", "values", "expected"), INTEGERS, ids=[name for name, _, _ in INTEGERS])
def test_integers_are_ids_or_quantities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, values: np.ndarray, expected: str
) -> None:
    assert meaning(name, *np.unique(values, return_counts=True))[0] == expected
    schema, text = proposed(tmp_path, **{name: values})
    kinds = [feature.kind for feature in schema.features.values()]
    assert kinds == {"id": ["id"], "number": ["number"], "both": ["id", "number"]}[expected]
    printed = capsys.readouterr().out
    if expected == "both":
        assert schema.features[f"{name}_number"].quantiles == 32  # type: ignore[union-attr]
        assert "Proposed as both, ids and a number by its quantiles: delete one of the lines" in printed
        assert "Delete this line or the next" in text


def test_integers_of_which_each_occurs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = 1000
    schema, _ = proposed(
        tmp_path,
        row=np.arange(rows),
        key=RANDOM.integers(0, 10**12, rows),
        fnlwgt=np.arange(rows) * 17,
        sum_cents=np.arange(rows) ** 3,
        c=np.arange(rows) ** 4,
    )
    assert {name: feature.kind for name, feature in schema.features.items()} == {
        "fnlwgt": "number",
        "sum_cents": "number",
        "c": "number",
    }
    assert schema.features["c"].quantiles == 32  # type: ignore[union-attr]
    printed = capsys.readouterr().out
    assert "left out row: nearly every row has a value of its own" in printed
    assert "left out key: nearly every row has a value of its own" in printed


def test_two_labels_are_both_labels_and_never_features(tmp_path: Path) -> None:
    lines = [f"{row % 7},{row % 2},{row % 3 % 2}" for row in range(60)]
    (tmp_path / "log.csv").write_text("x,a,b\n" + "\n".join(lines))
    out = str(tmp_path / "out")
    assert main(["data", "csv", str(tmp_path / "log.csv"), "--out", out, "--label", "a", "--label", "b,a"]) == 0
    schema = load_config(f"{out}/run.yaml").feature_schema
    assert schema.tasks == ["a", "b"]
    assert list(schema.features) == ["x"]


def test_an_option_of_several_values_may_be_repeated() -> None:
    parsed = parser().parse_args(["data", "parquet", "x", "--out", "o", "--label", "a,b", "--label", "c"])
    assert parsed.label == ["a", "b", "c"]
    parsed = parser().parse_args(
        ["predict", *["--config", "c", "--data", "d", "--out", "o"], "--keys", "a", "--keys", "b,c"]
    )
    assert parsed.keys == ["a", "b", "c"]
    parsed = parser().parse_args(["data", "profile", "x", "--config", "c", "--against", "a", "--against", "b"])
    assert parsed.against == ["a", "b"]
    assert parser().parse_args(["data", "csv", "x", "--out", "o"]).label == []  # the lists do not grow together


def test_what_is_named_like_an_outcome_is_no_feature_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = 300
    schema, text = proposed(
        tmp_path,
        is_conversion=[row % 3 == 0 for row in range(rows)],
        hasLiked=["yes", "no"] * 150,
        buy=[0, 0, 1] * 100,
        purchased=[0.0, 1.0, 0.25 * 4] * 100,
        rating=[row % 5 + 1 for row in range(rows)],
        member=[0, 1, 1] * 100,
    )
    assert list(schema.features) == ["rating", "member"]
    line = '# "buy": named like something that is known only afterwards; if it is known before, write: buy: {kind: id, '
    assert line + "range: 2, on_bad: reserve, dim: 8}\n" in text
    printed = capsys.readouterr().out
    for name in ("is_conversion", "hasLiked", "buy", "purchased"):
        assert f"left out {name}: named like something that is known only afterwards" in printed
    assert "is rating known before the label is? By its name it may be known only afterwards" in printed
    assert "member" not in printed
    # The line does what it says.
    (offered,) = (row.partition("write: ")[2] for row in text.splitlines() if "buy: {" in row)
    (tmp_path / "out/schema.yaml").write_text(text.replace("labels:\n", f"  {offered}\nlabels:\n"))
    assert "buy" in load_config(str(tmp_path / "out/run.yaml")).feature_schema.features


def test_what_tells_the_label_in_every_row_is_no_feature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = 300
    stage = np.where(np.arange(rows) % 2, RANDOM.choice(["paid", "shipped"], rows), RANDOM.choice(["seen", ""], rows))
    nearly = np.where(np.arange(rows) % 2, 7, 8)
    nearly[:40] = 7
    schema, _ = proposed(tmp_path, stage=stage, nearly=nearly, mirror=[row % 2 + 5 for row in range(rows)])
    assert list(schema.features) == ["stage", "nearly", "mirror"]
    printed = capsys.readouterr().out
    for name in ("stage", "mirror"):
        assert f"is {name} known before click is? It tells click in every training row" in printed
    assert "nearly" not in printed


def test_what_is_empty_or_0_but_for_one_label_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, one_N = 400, np.arange(400) % 2 == 1
    order = [f"order {row % 90}" if one else None for row, one in enumerate(one_N)]
    spent, other = np.where(one_N, RANDOM.integers(1, 900, rows), 0), RANDOM.integers(0, 4, rows) * 1.5
    proposed(tmp_path, order=order, spent=spent, spent_float=spent + 0.25 * one_N, other=other)
    printed = capsys.readouterr().out
    for name in ("order", "spent", "spent_float"):
        assert f"is {name} known before click is? It tells click in every training row" in printed
    assert "is other known" not in printed


def test_numbers_and_times_that_are_there_only_with_a_label_tell_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = 2000
    spent: list[float | None] = [round(0.37 + row, 2) if row % 2 else [0.0, None][row // 2 % 2] for row in range(rows)]
    arrived = [datetime(2025, 1, 1 + row % 28, row % 24) if row % 2 else None for row in range(rows)]
    owed = [*spent[:-1], -3.5]  # tells it too: below zero is a sign of its own
    height = [None if row % 7 == 0 else float(value) for row, value in enumerate(RANDOM.normal(0, 1, rows))]
    proposed(tmp_path, spent=spent, arrived=arrived, height=height, owed=owed)
    printed = capsys.readouterr().out
    for name in ("spent", "arrived", "owed"):
        assert f"is {name} known before click is? It tells click in every training row" in printed
    assert "height" not in printed


@pytest.mark.parametrize(
    ("values", "positive", "ones"),
    [
        ([" <=50K", " >50K", " <=50K"], [">50K"], 1),
        ([1, 2, 2], ["2"], 2),
        ([-1, 1, -1], ["1"], 1),
        ([-1, 1, -1], ["-1"], 2),
        ([1.0, 2.0, 1.0], ["1"], 2),
        ([1, 4, 5], ["4", "5"], 2),
        ([1, 4, 5], ["click=4"], 1),
        (["a=b", "c", "c"], ["a=b"], 1),
        (["no", "Yes", "yes"], [], 2),
        ([True, False, False], [], 1),
        ([1.0, 0.0, 1.0], [], 2),
    ],
)
def test_what_counts_as_one(tmp_path: Path, values: list[Any], positive: list[str], ones: int) -> None:
    column = pa.array(values * 20)
    folder = tmp_path / "parquet"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1, 2, 3] * 20, "click": column.dictionary_encode()}), folder / "in.parquet")
    import_parquet([str(folder)], str(folder / "out"), labels=["click"], positive=positive)
    lines = [f"{x},{value}" for x, value in zip([1, 2, 3] * 20, column.to_pylist(), strict=True)]
    (tmp_path / "in.csv").write_text("x,click\n" + "\n".join(lines))
    arguments = [word for value in positive for word in ("--positive", value)]
    command = ["data", "csv", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), "--label", "click"]
    assert main([*command, *arguments]) == 0
    import_like(str(tmp_path / "in.csv"), str(tmp_path / "later"), str(tmp_path / "out"))
    for out in (folder / "out", tmp_path / "out"):
        written = pa.concat_tables(pq.read_table(out / part) for part in PARTS)["click"]
        assert (written.type, written.to_pylist().count(1), len(written)) == (pa.int8(), ones * 20, 60)
    assert pq.read_table(tmp_path / "later")["click"].to_pylist().count(1) == ones * 20


@pytest.mark.parametrize(
    ("values", "positive", "message"),
    [
        (["<=50K", ">50K"], [], r"holds '<=50K' and '>50K'; a label is 0 or 1.*: say which value counts as 1, such as"),
        (["<=50K", ">50K"], [], r"such as --positive '>50K'$"),
        ([1, 2], [], "holds '1' and '2'; .* such as --positive 2$"),
        ([-1, 1], [], "holds '-1' and '1'; .* such as --positive 1$"),
        (
            [5, 1, 10, 3],
            [],
            r"holds '1', '3', '5' and '10'; .*--positive 10 \(a label may have several: is the rating 4",
        ),
        (list(range(1500)), [], "holds '0', .* and others; a label is 0 or 1"),
        (["<=50K", ">50K"], ["50K"], "never is '50K', which --positive names; it holds '<=50K' and '>50K'"),
        (["<=50K", ">50K"], ["<=50K", ">50K"], "--positive names all; a label has 0 too"),
        ([1, 0, None], [], "is empty in 1 rows; a label has a value in each; delete those rows"),
        ([1.0, 0.0, float("nan")], [], "is empty in 1 rows; a label has a value in each"),
        ([1, 1], [], "is 1 in every row; a label to learn has both 0 and 1"),
        (["a", "a"], ["a"], "is a in every row; a label to learn has both 0 and 1"),
        (["yes", "true"], [], "holds 'true' and 'yes', which mean the same; a label to learn has both 0 and 1"),
        ([None, None], [], "is empty in every row; name another --label"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, values: list[Any], positive: list[str], message: str) -> None:
    column = pa.array(values) if any(value is not None for value in values) else pa.array(values, pa.int64())
    pq.write_table(pa.table({"x": range(len(values)), "y": column}), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=message):
        import_parquet([str(tmp_path / "in.parquet")], str(tmp_path / "out"), labels=["y"], positive=positive)
    assert not (tmp_path / "out").exists()


def test_values_of_several_labels_are_named_with_the_label(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x,a,b\n" + "1,lo,1\n2,hi,2\n" * 20)
    options: dict[str, Any] = {"labels": ["a", "b"]}
    with pytest.raises(ValueError, match=r"--positive 'hi': of which label\? Write LABEL=VALUE; the labels are a, b"):
        import_csv(str(tmp_path / "in.csv"), str(tmp_path / "out"), **options, positive=["hi"])
    import_csv(str(tmp_path / "in.csv"), str(tmp_path / "out"), **options, positive=["a=hi", "b=1"])
    text = (tmp_path / "out/schema.yaml").read_text()
    assert (
        "  a: {}  # 50.0% of all rows are 1; 'hi' counted as 1\n  b: {}  # 50.0% of all rows are 1; '1' counted as 1\n"
        in text
    )
