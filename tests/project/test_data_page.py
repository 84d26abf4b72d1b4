"""The examples of docs/data.md, each read as it stands: while training, while predicting, and in another order."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rankmixer.pipeline.learn.learn import learn
from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.features import Cross, Id, IdList, Number, Time
from rankmixer.pipeline.schema.schema import Schema

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLES = {
    name: (yaml.safe_load(feature), yaml.safe_load(columns), expected)
    for name, feature, columns, expected in re.findall(
        r"^    (\w+): (\{kind: .*\})\n    (\{.*\}) -> (.*)$", PAGE, re.MULTILINE
    )
}


@pytest.fixture(autouse=True)
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "city.txt").write_text("Oslo\nRome\n")
    monkeypatch.chdir(tmp_path)


def test_every_kind_key_and_policy_has_an_example() -> None:
    features = [feature for feature, _, _ in EXAMPLES.values()]
    for kind in (Id, IdList, Number, Time, Cross):
        mine = [feature for feature in features if feature["kind"] == kind.model_fields["kind"].annotation.__args__[0]]  # type: ignore[union-attr]
        # The choice of ids is the same for one id and for lists.
        mine += [feature for feature in features if kind is IdList and feature["kind"] == "id"]
        missing = set(kind.model_fields) - {key for feature in mine for key in feature}
        assert missing <= {"column", "group", "table"}, f"docs/data.md shows no {kind.__name__} with {missing}"
    assert {feature.get("on_bad") for feature in features} == {None, "fail", "reserve", "drop"}
    assert {feature.get("part") for feature in features} == {None, "hour", "weekday", "age"}


def read(tmp_path: Path, name: str, labels: bool, shuffle: bool) -> Batch:
    feature, columns, _ = EXAMPLES[name]
    rows = len(next(iter(columns.values())))
    arrays = {column: pa.array(values) for column, values in columns.items()}
    pq.write_table(
        pa.table(arrays | {"click": [0] * rows, "row": range(rows)}), tmp_path / "data.parquet", row_group_size=2
    )
    features = {part: EXAMPLES[part][0] for part in feature.get("of", [])} | {name: feature}
    features["row"] = {"kind": "number"}
    schema = learn(Schema.model_validate({"features": features, "labels": {"click": {}}}), "data.parquet")
    (batch,) = BatchReader(ParquetDataset("data.parquet", schema, labels=labels), rows, shuffle=shuffle).epoch()
    return batch


def shown(batch: Batch, name: str) -> list[Any]:
    """What the rows became, as the page writes it, in the order of the file."""
    order = np.argsort(batch.dense_BF[:, -1].numpy())
    keys = batch.sparse.keys()
    if name not in keys:
        return [round(value, 3) for value in batch.dense_BF[:, 0].numpy()[order].tolist()]
    feature = batch.sparse[name]
    ids = [bag.tolist() for bag in feature.to_dense()]
    if feature.weights_or_none() is not None:
        weights = [bag.tolist() for bag in feature.to_dense_weights()]
        return [dict(zip(ids[row], weights[row], strict=True)) for row in order]
    return [ids[row] if batch.weights_B[row] else "dropped" for row in order]


@pytest.mark.parametrize(("labels", "shuffle"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(tmp_path: Path, name: str, labels: bool, shuffle: bool) -> None:
    expected = EXAMPLES[name][2]
    if expected.startswith("error: "):
        with pytest.raises(ValueError, match=re.escape(expected.removeprefix("error: "))):
            read(tmp_path, name, labels, shuffle)
    else:
        assert shown(read(tmp_path, name, labels, shuffle), name) == yaml.safe_load(expected)


def test_the_whole_schema_of_the_page_is_one(tmp_path: Path) -> None:
    text = PAGE.partition("\n    features:\n")[2].partition("\n\n")[0]
    (tmp_path / "schema.yaml").write_text(f"    features:\n{text}")
    assert Schema.load("schema.yaml").tasks == ["click"]
