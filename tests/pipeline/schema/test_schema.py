import re
from pathlib import Path
from typing import Any

import pytest

from rankmixer.pipeline.schema.schema import IdList, Number, Schema, Table

EXAMPLE = """
features:
  user_id: {kind: id, range: 944, dim: 16, group: user}
  item_id: {kind: id, buckets: 1000, dim: 12, group: item}
  city:    {kind: id, vocabulary: city.txt, dim: 8, group: user}
  genres:  {kind: id_list, separator: "|", buckets: 64, pooling: mean, dim: 20, group: item}
  history: {kind: id_list, range: 944, table: user_id, pooling: sum, dim: 16, weights: history_weights}
  age:     {kind: number, boundaries: [18, 25, 35], dim: 4, group: user}
  price:   {kind: number, transform: log1p, group: item, column: price_cents}
labels:
  click: {weight: 2.0}
  buy:   {column: bought}
weight: sample_weight
"""


def load(tmp_path: Path, text: str = EXAMPLE) -> Schema:
    (tmp_path / "city.txt").write_text("Rome\nOslo\n")
    (tmp_path / "schema.yaml").write_text(text)
    return Schema.load(str(tmp_path / "schema.yaml"))


def schema(features: dict[str, Any], **others: Any) -> Schema:
    return Schema.model_validate({"features": features, "labels": {"click": {}}, **others})


def test_what_a_schema_says(tmp_path: Path) -> None:
    example = load(tmp_path)
    assert example.groups == {
        "user": ["user_id", "city", "age"],
        "item": ["item_id", "genres", "price"],
        "history": ["history"],
    }
    assert example.sparse_features == ["user_id", "city", "age", "item_id", "genres", "history"]
    assert example.dense_features == ["price"]
    assert example.tasks == ["click", "buy"]
    assert example.is_weighted
    assert list(example.tables.values()) == [
        Table("user_id", 944, 16, "sum", ["user_id", "history"]),
        Table("city", 3, 8, "sum", ["city"]),  # two words and the reserved row
        Table("age", 4, 4, "sum", ["age"]),
        Table("item_id", 1000, 12, "sum", ["item_id"]),
        Table("genres", 64, 20, "mean", ["genres"]),
    ]
    features = ["user_id", "item_id", "city", "genres", "history", "age", "price_cents", "history_weights"]
    assert example.columns(labels=False) == features
    assert example.columns(labels=True) == [*features, "click", "bought", "sample_weight"]


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    example = load(tmp_path)
    history = example.features["history"]
    assert isinstance(history, IdList)
    assert (history.column, history.group, history.table, history.bad_policy) == (
        "history",
        "history",
        "user_id",
        "fail",
    )
    assert example.features["city"].bad_policy == "reserve"  # type: ignore[union-attr]
    assert isinstance(example.features["price"], Number)
    assert Schema.model_validate(example.model_dump()) == example


def test_digest_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = load(tmp_path / "a"), load(tmp_path / "b")
    assert here.features["city"].vocabulary != there.features["city"].vocabulary  # type: ignore[union-attr]
    assert here.digest() == there.digest()
    assert load(tmp_path / "a", EXAMPLE.replace("944", "945")).digest() != there.digest()
    (tmp_path / "a" / "city.txt").write_text("Oslo\nRome\n")
    assert Schema.load(str(tmp_path / "a" / "schema.yaml")).digest() != there.digest()


def test_reserve_adds_a_row_and_crlf_is_no_part_of_a_word(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"a\r\nb\r\n")
    id_ = {"kind": "id", "dim": 4}
    made = schema(
        {
            "r": {**id_, "range": 5, "on_bad": "reserve"},
            "d": {**id_, "range": 5, "on_bad": "drop"},
            "v": {**id_, "vocabulary": str(tmp_path / "words.txt"), "on_bad": "fail"},
        }
    )
    assert [table.rows for table in made.tables.values()] == [6, 5, 2]
    assert made.features["v"].words == ("a", "b")  # type: ignore[union-attr]


def test_a_managed_table_has_room_for_its_ids_and_a_shared_row_in_each_segment() -> None:
    line = {"kind": "id", "dim": 4, "managed": 5000}
    made = schema({"a": line, "b": {**line, "kind": "id_list", "table": "a"}, "c": {**line, "managed": 3}})
    assert made.tables == {
        "a": Table("a", 960 * (13 + 1), 4, "sum", ["a", "b"], managed=True),
        "c": Table("c", 960 * 2, 4, "sum", ["c"], managed=True),
    }
    with pytest.raises(ValueError, match="features of table 'a' must agree on managed; found a 5000, b 5001"):
        schema({"a": line, "b": {**line, "managed": 5001, "table": "a"}})


BAD_LINES = {
    "user_id: {kind: id, rang: 9, dim: 4}": "features.user_id: unknown key 'rang'; did you mean 'range'? known keys: ",
    "user_id: {kind: idd, range: 9, dim: 4}": "kind 'idd' is unknown; expected id, id_list, number, time or cross",
    "user_id: {range: 9, dim: 4}": "features.user_id: kind is missing; expected id, id_list, number, time or cross",
    "user_id: {kind: id, range: 9}": "features.user_id.dim: Field required",
    "user_id: {kind: id, range: 9, dim: 6}": "features.user_id.dim: Input should be a multiple of 4; found 6",
    "user_id: {kind: id, range: 0, dim: 4}": "features.user_id.range: Input should be greater than or equal to 1",
    "user_id: {kind: id, dim: 4}": "exactly one of vocabulary, buckets, range and managed says how ids are formed;",
    "user_id: {kind: id, dim: 4, range: 9, buckets: 9}": "how ids are formed; found buckets and range",
    "user_id: {kind: id, dim: 4, buckets: 9, on_bad: drop}": "on_bad has no meaning with buckets",
    "user_id: {kind: id, dim: 4, managed: 9, on_bad: reserve}": "on_bad has no meaning with managed",
    "user_id: {kind: id, dim: 4, managed: 9, range: 9}": "how ids are formed; found range and managed",
    "user_id: {kind: id, dim: 4, managed: 0}": "features.user_id.managed: Input should be greater than or equal to 1",
    "user_id: {kind: id, dim: 4, range: 9, seed: 3}": "seed belongs to buckets and managed",
    "user_id: {kind: id, dim: 4, range: 9, default: 9}": "default must be an integer from 0 to 8; found 9",
    "user_id: {kind: id, dim: 4, range: 9, default: a}": "default must be an integer from 0 to 8; found 'a'",
    "user_id: {kind: id, dim: 4, vocabulary: city.txt, default: Bonn}": "default 'Bonn' is not in ",
    "user_id: {kind: id, dim: 4, vocabulary: none.txt}": "none.txt'; `rankmixer vocab` writes it",
    "user_id: {kind: id, dim: 4, vocabulary: twice.txt}": "twice.txt: line 3 repeats 'a' of line 1; remove one",
    "user_id: {kind: id, dim: 4, vocabulary: empty.txt}": "empty.txt: found no value; expected one a line",
    "age: {kind: number, dim: 4}": "boundaries (or quantiles) and dim go together: both for a table",
    "age: {kind: number, dim: 4, boundaries: [2, 1]}": "boundaries must increase; found [2.0, 1.0]",
    "age: {kind: number, dim: 4, boundaries: [1, .nan]}": "features.age.boundaries.1: Input should be a finite number",
    "age: {kind: number, dim: 4, boundaries: [1], transform: log1p}": "no meaning with boundaries or quantiles",
    "age: {kind: number, standardise: [1, 0]}": "standardise is [mean, std] with std > 0; found [1.0, 0.0]",
    "age: {kind: number, standardise: [1, 2, 3]}": "features.age.standardise: expected learn, or [mean, std]",
    "age: {kind: number, standardise: lern}": "features.age.standardise: expected learn, or [mean, std]; found 'lern'",
    "age: {kind: number, quantiles: 4}": "boundaries (or quantiles) and dim go together",
    "age: {kind: number, quantiles: 1, dim: 4}": "features.age.quantiles: Input should be greater than or equal to 2",
    "age: {kind: number, quantiles: 4, dim: 4, boundaries: [1]}": "two ways to say the same; remove one",
    "seen: {kind: id_list, range: 9, dim: 4, keep: first}": "keep: first belongs to truncate; give truncate, or remove",
    "seen: {kind: id_list, range: 9, dim: 4, weights: click}": "seen: column 'click' is also the label 'click'",
    "at: {kind: time, dim: 4}": "features.at.part: Field required",
    "at: {kind: time, part: minute, dim: 4}": "features.at.part: Input should be 'hour', 'weekday' or 'age'",
    "at: {kind: time, part: hour, dim: 4, timezone: Europe/Olso}": "is unknown; did you mean 'Europe/Oslo'?",
    "at: {kind: time, part: hour, dim: 4, boundaries: [1h]}": "boundaries belong to part: age; found part: hour",
    "at: {kind: time, part: age, dim: 4, boundaries: [1h]}": "wants exactly one of reference (a column) and ref",
    "at: {kind: time, part: age, dim: 4, reference: now}": "part: age wants boundaries, such as [1h, 1d, 7d], or quan",
    "at: {kind: time, part: age, dim: 4, reference: at, quantiles: 2}": "reference is the feature's own column 'at'",
    "at: {kind: time, part: age, dim: 4, reference: b, boundaries: [1y]}": "expected a length of time such as 30s, 5",
    "at: {kind: time, part: age, dim: 4, reference: b, boundaries: [2h, 90min]}": "must increase; found [7200.0, 540",
    "at: {kind: time, part: age, dim: 4, reference: b, quantiles: 2, timezone: Asia/Tokyo}": "timezone belongs to hour",
    "at: {kind: time, part: age, dim: 4, reference: click, quantiles: 2}": "column 'click' is also the label 'click'",
    "x: {kind: cross, of: [a], buckets: 9, dim: 4}": "features.x.of: Tuple should have at least 2 items",
    "x: {kind: cross, of: [x, x], buckets: 9, dim: 4}": "features.x: of names a feature twice; found ['x', 'x']",
    "x: {kind: cross, of: [y, x1], buckets: 9, dim: 4}": "features.x: of names 'y', which is no feature; ",
    "x: {kind: cross, of: [n, x], buckets: 9, dim: 4}\n  n: {kind: number}": "'n', which is a number without bound",
    "x: {kind: cross, column: a, of: [a, b], buckets: 9, dim: 4}": "features.x: unknown key 'column'; ",
    "age: {kind: number, column: click}": "features.age: column 'click' is also the label 'click'",
    "a.b: {kind: id, range: 9, dim: 4}": "name 'a.b' must not be empty or hold a dot; give the column with `column:`",
    "age:": "features.age: Input should be a valid dictionary",
    "age: {kind: number}\n  age: {kind: number}": "key 'age' is given twice",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=re.escape(BAD_LINES[line])) as error:
        load(tmp_path, f"features:\n  {line}\nlabels:\n  click: {{}}\n")
    assert str(error.value).startswith(f"{tmp_path / 'schema.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {click: {}}", "schema.yaml: features: Field required"),
        ("features: {a: {kind: number}}\nlabels: {}", "schema.yaml: labels: Dictionary should have at least 1 item"),
        ("features: {a: {kind: number}}\nlabels: {click: {weight: 0}}", "labels.click.weight: Input should be greater"),
        (
            "features: {a: {kind: number}}\nlabels: {click: {}}\nweight: click",
            "weight: column 'click' is also the label",
        ),
        (
            "features: {a: {kind: number}}\nlabls: {click: {}}",
            "schema.yaml: unknown key 'labls'; did you mean 'labels'?",
        ),
        ("features: [", "schema.yaml: not valid YAML: "),
        ("just text", "schema.yaml: Input should be a valid dictionary"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path, text)


def test_all_wrong_features_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: exactly one") as error:
        load(tmp_path, "features:\n  a: {kind: id, dim: 4}\n  b: {kind: number, dim: 4}\nlabels: {click: {}}")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["features.a", "features.b"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.yaml: cannot be read: "):
        Schema.load(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"range": 8, "dim": 4}, "features of table 'a' must agree on range; found a 9, b 8; or name two tables"),
        ({"buckets": 9, "dim": 4}, "must agree on buckets; found a None, b 9"),
        ({"range": 9, "dim": 8}, "must agree on dim; found a 4, b 8"),
        ({"range": 9, "dim": 4, "on_bad": "reserve"}, "must agree on rows; found a 9, b 10"),
    ],
)
def test_a_shared_table_needs_agreement(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        schema({"a": {"kind": "id", "range": 9, "dim": 4}, "b": {"kind": "id_list", "table": "a", **other}})


def test_pooling_of_a_shared_table() -> None:
    lists = {"kind": "id_list", "range": 9, "dim": 4, "table": "t"}
    one = {"a": {"kind": "id", "range": 9, "dim": 4, "table": "t"}, "b": {**lists, "pooling": "mean"}}
    assert schema(one).tables["t"].pooling == "mean"
    with pytest.raises(ValueError, match="must agree on pooling; found b mean, c sum"):
        schema({**one, "c": {**lists, "pooling": "sum"}})
    with pytest.raises(ValueError, match="table 'n' is that of the number 'n'; name another"):
        schema({"n": {"kind": "number", "boundaries": [1], "dim": 4}, "b": {**lists, "table": "n"}})


def test_json_schema_describes_every_key() -> None:
    definitions = Schema.model_json_schema()["$defs"]
    assert definitions["Id"]["properties"]["range"]["description"] == "The values are integers 0 to range - 1."
    assert definitions["IdList"]["additionalProperties"] is False
