"""Vocabularies against collections.Counter over Python values."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.launch.cli import main
from rankmixer.pipeline.learn import build_vocabulary as module
from rankmixer.pipeline.learn.build_vocabulary import build_vocabularies
from rankmixer.pipeline.learn.word_counts import WordCounts, summed
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.schema.vocabulary import read_vocabulary
from tests.helpers.job import Job

CITY = {"kind": "id", "dim": 4}
LIST = {"kind": "id_list", "dim": 4}


def schema(folder: Path, **features: dict[str, Any]) -> Schema:
    (folder / "schema.yaml").write_text(
        yaml.safe_dump({"features": features, "labels": {"click": {}}}, sort_keys=False)
    )
    return Schema.load(str(folder / "schema.yaml"), vocabularies_to_be_written=True)


def write(folder: Path, columns: dict[str, Any], files: int = 3, row_group: int = 4) -> str:
    table = pa.table(columns)
    size = -(-len(table) // files)
    (folder / "data").mkdir(exist_ok=True)
    for number in range(files):
        pq.write_table(
            table.slice(number * size, size), folder / "data" / f"{number}.parquet", row_group_size=row_group
        )
    return str(folder / "data")


def ordered(counts: Counter[Any], min_count: int = 1) -> list[str]:
    kept = [(value, count) for value, count in counts.items() if count >= min_count]
    return [str(value) for value, _ in sorted(kept, key=lambda pair: (-pair[1], pair[0]))]


@given(
    chunks=st.lists(st.lists(st.text("äb€\x00", max_size=3)), min_size=1, max_size=5),
    memory_bytes=st.sampled_from([1, 300, 10**6]),
    min_count=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_counts_spilled_or_not_are_those_of_counter(
    chunks: list[list[str]], memory_bytes: int, min_count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counts = WordCounts(tmp_path_factory.mktemp("counts"), memory_bytes)
    for chunk in chunks:
        counts.add(summed(pa.array(chunk, pa.string()), np.ones(len(chunk), np.int64)))
    expected = Counter(word for chunk in chunks for word in chunk)
    assert [word for word, _ in counts.ordered(min_count)] == ordered(expected, min_count)
    assert (counts.total, counts.distinct) == (expected.total(), len(expected))


@pytest.mark.parametrize("memory_bytes", [1000, 1 << 28])
def test_many_files_of_many_values(tmp_path: Path, memory_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, integers, lists, split strings; nulls and empty parts are no values; the result fits the encoder."""
    monkeypatch.setattr(module, "PIECE_ROWS", 170)
    random = np.random.default_rng(0)
    rows = 3000
    city = [None if number % 50 == 0 else f"city {number}" for number in random.zipf(1.5, rows) % 700]
    film = random.integers(-99, 99, rows).tolist()
    lengths = random.integers(0, 9, rows)
    letters = ["a", "b", "cd", "é", "f|"]
    tags = [None if size == 0 else "|".join(random.choice(letters, size - 1)) for size in lengths]
    columns = {
        "city": pa.array(city, pa.large_string()),
        "film": pa.array(film, pa.int16()),
        "tags": tags,
        "seen": pa.array(
            [random.integers(0, 5, size).tolist() for size in random.integers(0, 3, rows)], pa.list_(pa.int64())
        ),
        "click": [0, 1] * (rows // 2),
    }
    asked = schema(
        tmp_path,
        city={**CITY, "vocabulary": "city.txt", "default": "city 1"},
        film={**CITY, "vocabulary": "film.txt"},
        tags={**LIST, "vocabulary": "tags.txt", "separator": "|"},
        seen={**LIST, "vocabulary": "seen.txt"},
    )
    paths = write(tmp_path, columns, files=5, row_group=400)
    written = build_vocabularies(asked, paths, min_count=2, memory_bytes=memory_bytes)
    expected = {
        "city": Counter(value for value in city if value is not None),
        "film": Counter(film),
        "tags": Counter(part for tag in tags for part in (tag or "").split("|") if part),
        "seen": Counter(value for ids in columns["seen"].to_pylist() for value in ids),
    }
    for name, file in zip(expected, written, strict=True):
        assert file.path == tmp_path / f"{name}.txt"
        words = list(read_vocabulary(str(file.path)))
        assert words == ordered(expected[name], min_count=2)
        counts = expected[name]
        assert (file.words, file.values, file.occurrences) == (len(words), len(counts), counts.total())
        kept = sum(count for count in counts.values() if count >= 2)
        assert file.covered == pytest.approx(kept / counts.total())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "city.txt", "data", "film.txt", "schema.yaml", "seen.txt", "tags.txt",
    ]  # fmt: skip
    reader = BatchReader(ParquetDataset(paths, Schema.load(str(tmp_path / "schema.yaml"))), rows, shuffle=False)
    (batch,) = reader.epoch()
    assert set(batch.sparse["film"].values().tolist()) <= set(range(written[1].words + 1))
    rare = {name: counts.total() - sum(c for c in counts.values() if c >= 2) for name, counts in expected.items()}
    unknown = {f"{name}: unknown -> reserved": count for name, count in rare.items() if count}
    assert {key: count for key, count in reader.mended.items() if "unknown" in key} == unknown


def test_features_that_share_a_vocabulary_are_counted_together(tmp_path: Path) -> None:
    asked = schema(
        tmp_path,
        home={**CITY, "vocabulary": "city.txt", "table": "city"},
        visited={**LIST, "vocabulary": "city.txt", "table": "city"},
        shop={**CITY, "buckets": 5},
    )
    columns = {"home": ["Ulm", "Rome"], "visited": [["Rome", "Oslo"], ["Oslo", "Oslo"]], "shop": [7, 7]}
    paths = write(tmp_path, columns)
    (file,) = build_vocabularies(asked, paths, ["home"])
    assert file.path.read_text() == "Oslo\nRome\nUlm\n"
    (file,) = build_vocabularies(asked, paths, ["shop"], out=str(tmp_path / "new" / "folder"))
    assert file.path == tmp_path / "new" / "folder" / "shop.txt"
    assert file.path.read_text() == "7\n"
    other = schema(
        tmp_path,
        a={**CITY, "vocabulary": "x.txt", "column": "home"},
        b={**CITY, "vocabulary": "x.txt", "column": "shop"},
    )
    (file,) = build_vocabularies(other, paths)
    assert file.path.read_text() == "7\nRome\nUlm\n"


def test_values_with_a_line_break_are_left_out_and_counted(tmp_path: Path) -> None:
    asked = schema(tmp_path, city={**CITY, "vocabulary": "city.txt"})
    paths = write(tmp_path, {"city": ["a\nb", "", "c\r", "a\nb", "d", " d"]})
    (file,) = build_vocabularies(asked, paths)
    assert read_vocabulary(str(file.path)) == ("", " d", "d")
    assert (file.words, file.broken, file.occurrences) == (3, 3, 3)


def refused(asked: Schema, paths: str, *names: str, **keys: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        build_vocabularies(asked, paths, names, **keys)
    return str(error.value)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    asked = schema(
        tmp_path,
        city={**CITY, "vocabulary": "city.txt"},
        shop={**CITY, "vocabulary": "shop.txt"},
        user={**CITY, "buckets": 9},
        price={"kind": "number"},
    )
    paths = write(tmp_path, {"city": ["a", "b", "c"], "shop": ["x", "x", "y"], "user": [1, 2, 3], "price": [1, 2, 3]})
    assert "'citty' is no id feature; did you mean 'city'? The schema has city, shop, user" in refused(
        asked, paths, "citty"
    )
    assert refused(asked, paths, "price").startswith("'price' is no id feature; ")
    assert "features.user names no vocabulary; add `vocabulary: user.txt`, or give --out" in refused(
        asked, paths, "user"
    )
    assert "min_count is 0; expected at least 1" in refused(asked, paths, min_count=0)
    message = refused(asked, paths, min_count=2)
    assert "city.txt: found 3 different values in 3 occurrences, none of which occurs 2 times; lower --m" in message
    plain = schema(tmp_path, user={**CITY, "buckets": 9})
    assert "no feature of the schema has a `vocabulary`; name features" in refused(plain, paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "schema.yaml"]
    (tmp_path / "shop.txt").write_text("mine\n")
    assert re.search(r"shop.txt exists and would be overwritten; remove it, or name", refused(asked, paths))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "schema.yaml", "shop.txt"]
    assert (tmp_path / "shop.txt").read_text() == "mine\n"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    tree = yaml.safe_load(job.config.read_text())
    features = tree["feature_schema"]["features"]
    features["city"] = {"kind": "id", "vocabulary": str(tmp_path / "city.txt"), "dim": 8}
    job.config.write_text(yaml.safe_dump(tree))
    assert (
        main(
            ["vocab", "--config", str(job.config), "city", "tags", "--out", str(tmp_path / "words"), "--min-count", "3"]
        )
        == 0
    )
    city, tags = (pq.read_table(tmp_path / "train")[name].to_pylist() for name in ("city", "tags"))
    assert (tmp_path / "words" / "city.txt").read_text().splitlines() == ordered(Counter(city), 3)
    assert (tmp_path / "words" / "tags.txt").read_text().splitlines() == ordered(
        Counter(t for ts in tags for t in ts), 3
    )
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"{tmp_path}/words/city.txt: \d+ words of \d+ values, \d\d\.\d\d% of 90 occurrences", printed[0]
    )
    one = f"data.train={tmp_path}/train/a.parquet"
    assert main(["vocab", "--config", str(job.config), one]) == 0
    assert (tmp_path / "city.txt").read_text().splitlines() == ordered(Counter(city[:50]))
    assert main(["vocab", "--config", str(job.config)]) == 2
    assert "city.txt exists and would be overwritten" in capsys.readouterr().err
