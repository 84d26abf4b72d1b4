"""MovieLens to Parquet, on small invented files in the formats of the official zips and of the RecBole wheel."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.sources import movielens
from rankmixer.pipeline.sources.movielens import COLUMNS, write_ml_1m, write_ml_100k

USERS, ITEMS, ROWS = 7, 11, 60
PARTS = ("train", "validation", "test")


def ratings() -> list[tuple[int, int, int, int]]:
    """(user, item, rating, timestamp), each pair once, times not in order."""
    pairs = np.random.RandomState(1).permutation(USERS * ITEMS)[:ROWS].tolist()
    return [(pair // ITEMS + 1, pair % ITEMS + 1, 1 + row % 5, 1000 + row * 7 % ROWS) for row, pair in enumerate(pairs)]


def zip_of(path: Path, members: dict[str, str], encoding: str = "latin-1") -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text.encode(encoding))
    return str(path)


def recbole(path: Path) -> str:
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    inter = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in reversed(ratings()))
    users = "".join(f"{u}\t{20 + u}\tF\tbaker\t0{u}A1\n" for u in range(1, USERS + 1))
    years = ["unkonwn", *(str(1990 + i) for i in range(2, ITEMS + 1))]
    items = "".join(f'{i}\tCafé "{i}\t{years[i - 1]}\tDrama War\n' for i in range(1, ITEMS + 1))
    members = {
        f"{folder}.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + inter,
        f"{folder}.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + users,
        f"{folder}.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + items,
    }
    return zip_of(path, members, "utf-8")


def official_100k(path: Path, **replaced: str) -> str:
    users = "".join(f"{u}|{20 + u}|F|baker|0{u}A1\n" for u in range(1, USERS + 1))
    dates = ["", *(f"01-Jan-{1990 + i}" for i in range(2, ITEMS + 1))]
    items = "".join(f'{i}|Café "{i}|{dates[i - 1]}||http://x|0|1|1\n' for i in range(1, ITEMS + 1))
    members = {
        "u.data": "".join("\t".join(map(str, row)) + "\n" for row in ratings()),
        "u.user": users,
        "u.item": items,
        "u.genre": "unknown|0\nDrama|1\nWar|2\n\n",
    } | {name.replace("_", "."): text for name, text in replaced.items()}
    return zip_of(path, {f"ml-100k/{name}": text for name, text in members.items()})


def official_1m(path: Path) -> str:
    members = {
        "ml-1m/ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in ratings()),
        "ml-1m/users.dat": "".join(f"{u}::M::{18 + u}::{u + 3}::0{u}A1\n" for u in range(1, USERS + 1)),
        "ml-1m/movies.dat": "".join(f"{i}::Café: {i} (Le) ({1990 + i})::Drama|War\n" for i in range(1, ITEMS + 1)),
    }
    return zip_of(path, members)


def read(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {part: pq.read_table(out / part).to_pylist() for part in PARTS}


def test_the_two_sources_give_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ml_100k(str(tmp_path / "a"), recbole(tmp_path / "recbole.whl"))
    write_ml_100k(str(tmp_path / "b"), official_100k(tmp_path / "ml-100k.zip"))
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert one == other
    assert list(one["train"][0]) == COLUMNS
    assert "MovieLens-100K, random split: 34 train, 4 validation, 10 test rows, 50.0% liked" in capsys.readouterr().out


def test_every_rating_but_three_is_in_one_part_with_its_user_and_film(tmp_path: Path) -> None:
    write_ml_100k(str(tmp_path / "out"), official_100k(tmp_path / "ml-100k.zip"))
    parts = read(tmp_path / "out")
    found = {(row["user_id"], row["item_id"]): row for rows in parts.values() for row in rows}
    expected = {(u, i): (int(r > 3), t) for u, i, r, t in ratings() if r != 3}
    assert sum(map(len, parts.values())) == len(found) == len(expected) == 48
    assert {pair: (row["label"], row["timestamp"]) for pair, row in found.items()} == expected
    for (user, item), row in found.items():
        assert (row["age"], row["gender"], row["occupation"], row["zip"]) == (20 + user, "F", "baker", f"0{user}A1")
        assert (row["year"], row["genres"]) == (1990 + item if item > 1 else None, "Drama|War")


def test_the_random_split_follows_the_seed(tmp_path: Path) -> None:
    source = official_100k(tmp_path / "ml-100k.zip")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_ml_100k(str(tmp_path / name), source, seed=seed)
    assert read(tmp_path / "a") == read(tmp_path / "b") != read(tmp_path / "c")


def test_the_time_split_keeps_the_future_for_the_test(tmp_path: Path) -> None:
    write_ml_1m(str(tmp_path / "out"), official_1m(tmp_path / "ml-1m.zip"), split="time")
    parts = read(tmp_path / "out")
    times = {part: [row["timestamp"] for row in rows] for part, rows in parts.items()}
    assert [len(times[part]) for part in PARTS] == [39, 4, 5]
    assert max(times["train"]) <= min(times["validation"])
    assert max(times["validation"]) <= min(times["test"])


def test_ml_1m_has_integer_codes_and_years_from_titles(tmp_path: Path) -> None:
    write_ml_1m(str(tmp_path / "out"), official_1m(tmp_path / "ml-1m.zip"))
    for rows in read(tmp_path / "out").values():
        for row in rows:
            assert row["occupation"] == row["user_id"] + 3
            assert (row["year"], row["genres"]) == (1990 + row["item_id"], "Drama|War")


def test_a_file_has_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "ROW_GROUP_ROWS", 13)
    write_ml_1m(str(tmp_path / "out"), official_1m(tmp_path / "ml-1m.zip"))
    assert pq.ParquetFile(tmp_path / "out/train/part-00000.parquet").num_row_groups == 3


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"u_data": "1\t2\tfour\t1000\n"}, "ml-100k.zip: column rating should hold integers: .*four"),
        ({"u_data": "1\t2\t4\t1000\n1\t2\t4\n"}, "ml-100k.zip: ml-100k/u.data: .*Expected 4 columns, got 3"),
        ({"u_data": "1\t99\t4\t1000\n"}, "ml-100k.zip: 1 ratings are of a user or a film that it does not list"),
    ],
)
def test_a_damaged_zip_leaves_nothing_behind(tmp_path: Path, members: dict[str, str], message: str) -> None:
    source = official_100k(tmp_path / "ml-100k.zip", **members)
    with pytest.raises(ValueError, match=message):
        write_ml_100k(str(tmp_path / "out"), source)
    assert [path.name for path in tmp_path.iterdir()] == ["ml-100k.zip"]


def test_the_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.zip cannot be read as a zip: .*No such file"):
        write_ml_100k(str(tmp_path / "out"), "nowhere.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text.zip cannot be read as a zip: File is not a zip file"):
        write_ml_100k(str(tmp_path / "out"), str(tmp_path / "text.zip"))
    source = official_1m(tmp_path / "ml-1m.zip")
    with pytest.raises(ValueError, match=r"ml-1m.zip holds neither ml-100k/u.data nor .*; give the official ml-100k"):
        write_ml_100k(str(tmp_path / "out"), source)
    with pytest.raises(ValueError, match=r"ml-100k.zip does not hold ml-1m/ratings.dat; give the official ml-1m.zip"):
        write_ml_1m(str(tmp_path / "out"), official_100k(tmp_path / "ml-100k.zip"))


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ValueError, match=r"out exists already and would be overwritten; remove it or name another"):
        write_ml_1m(str(tmp_path / "out"), official_1m(tmp_path / "ml-1m.zip"))
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str, wheel: bool) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        if wheel:
            recbole(Path(command[-1]) / "recbole-1.2.1-py3-none-any.whl")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_failing_pip_says_how_to_give_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, 1, "WARNING: x\nERROR: No matching distribution found\n", wheel=False)
    with pytest.raises(ValueError, match=r"pip could not fetch recbole==1.2.1.*\(ERROR: No matching.*with --source"):
        write_ml_100k(str(tmp_path / "out"))


def test_another_wheel_is_refused_and_the_right_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, 0, "", wheel=True)
    with pytest.raises(ValueError, match=r"recbole-1.2.1-py3-none-any.whl has SHA-256 \w{64}, expected 9c9948202011"):
        write_ml_100k(str(tmp_path / "out"))
    same = hashlib.sha256(Path(recbole(tmp_path / "same.whl")).read_bytes()).hexdigest()
    monkeypatch.setattr(movielens, "RECBOLE_SHA256", same)
    write_ml_100k(str(tmp_path / "out"))
    assert sum(map(len, read(tmp_path / "out").values())) == 48
