"""MovieLens-100K and -1M as Parquet: who liked which film.

The ratings are never part of this project: they are read from the user's copy of the official zip, or, for
MovieLens-100K, from the example that the RecBole wheel carries. They are for research and may not be redistributed.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from rankmixer.pipeline.base.atomic import new_directory
from rankmixer.pipeline.base.local_path import local_path

RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
LICENCE = (
    "MovieLens is made by GroupLens at the University of Minnesota: for research use, not to be redistributed, "
    "no commercial use without permission; the README in their zip says how to cite it."
)
COLUMNS = ["user_id", "age", "gender", "occupation", "zip", "item_id", "year", "genres", "timestamp", "label"]
VALIDATION_SHARE = 0.1
ROW_GROUP_ROWS = 16_384

Split = Literal["random", "time"]


def write_ml_100k(out: str, source: str | None = None, split: Split = "random", seed: int = 0) -> None:
    """Write MovieLens-100K under `out`: train/, validation/ and test/, 72 : 8 : 20 of the rows.

    A row is a rating: the columns are `COLUMNS`, with `label` 1 for ratings above 3 and 0 below (rows rated 3 are
    dropped, the rating itself is not written). `random` splits at random by `seed`; `time` puts the latest rows into
    test and the latest of the rest into validation. `year` is null where the release year is not known.

    Args:
        out: directory to make.
        source: the official ml-100k.zip or the RecBole wheel; None fetches the wheel with pip.

    Raises:
        ValueError: the source cannot be fetched or read, or `out` exists.
    """
    out = local_path(out)  # before anything is fetched
    with tempfile.TemporaryDirectory() as folder:
        path = Path(source) if source is not None else _fetch_recbole(Path(folder))
        with _open_zip(path) as archive:
            if _find(archive, "ml-100k.inter") is not None:
                ratings = _read_recbole(archive, path)
            elif _find(archive, "u.data") is not None:
                ratings = _read_official_100k(archive, path)
            else:
                raise ValueError(
                    f"{path} holds neither ml-100k/u.data nor ml-100k/ml-100k.inter; "
                    "give the official ml-100k.zip or the wheel of recbole 1.2.1"
                )
    _write(ratings, out, split, seed, test_share=0.2, name="MovieLens-100K")


def write_ml_1m(out: str, source: str, split: Split = "random", seed: int = 0) -> None:
    """Write MovieLens-1M from the official ml-1m.zip, 81 : 9 : 10; `age` and `occupation` are its integer codes.

    Otherwise as `write_ml_100k`.
    """
    out, path = local_path(out), Path(source)
    with _open_zip(path) as archive:
        if _find(archive, "ratings.dat") is None:
            raise ValueError(f"{path} does not hold ml-1m/ratings.dat; give the official ml-1m.zip")
        ratings = _read_official_1m(archive, path)
    _write(ratings, out, split, seed, test_share=0.1, name="MovieLens-1M")


def _fetch_recbole(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", RECBOLE]
    done = subprocess.run([*command, "--dest", str(folder)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no wheel came"
        )
        raise ValueError(
            f"pip could not fetch {RECBOLE}, which carries MovieLens-100K ({reason}); on a machine that can, run "
            f"`pip download --no-deps {RECBOLE}` or get the official ml-100k.zip, and give the file with --source"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != RECBOLE_SHA256:
        raise ValueError(
            f"{wheels[0].name} has SHA-256 {digest}, expected {RECBOLE_SHA256}; the package registry delivers another "
            "file than the one published: give the official ml-100k.zip with --source"
        )
    return wheels[0]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a zip: {error}") from None


def _find(archive: zipfile.ZipFile, name: str) -> str | None:
    """The member of that file name, in whatever folder."""
    return next((member for member in archive.namelist() if member.rsplit("/", 1)[-1] == name), None)


def _read(
    archive: zipfile.ZipFile, path: Path, name: str, columns: Sequence[str], separator: str = "\t", header: bool = False
) -> pa.Table:
    """A member as a table of strings; `columns` names its first columns, in order."""
    member = _find(archive, name)
    if member is None:
        raise ValueError(f"{path} does not hold {name}; it is not a whole copy")
    text = archive.read(member).decode("utf-8" if header else "latin-1").replace(separator, "\t")
    width = text.partition("\n")[0].count("\t") + 1
    names = [*columns, *(f"rest_{i}" for i in range(len(columns), width))]
    try:
        table = csv.read_csv(
            io.BytesIO(text.encode()),
            csv.ReadOptions(column_names=names, skip_rows=int(header)),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {member}: {error}") from None
    return table


def _read_recbole(archive: zipfile.ZipFile, path: Path) -> pa.Table:
    ratings = _read(archive, path, "ml-100k.inter", ["user_id", "item_id", "rating", "timestamp"], header=True)
    users = _read(archive, path, "ml-100k.user", ["user_id", "age", "gender", "occupation", "zip"], header=True)
    items = _read(archive, path, "ml-100k.item", ["item_id", "title", "year", "genres"], header=True)
    genres = pc.replace_substring(items["genres"], " ", "|")
    return _join(path, ratings, users, items["item_id"], items["year"], genres)


def _read_official_100k(archive: zipfile.ZipFile, path: Path) -> pa.Table:
    ratings = _read(archive, path, "u.data", ["user_id", "item_id", "rating", "timestamp"])
    users = _read(archive, path, "u.user", ["user_id", "age", "gender", "occupation", "zip"], separator="|")
    genres = _read(archive, path, "u.genre", ["genre", "index"], separator="|")["genre"].to_pylist()
    head = ["item_id", "title", "date", "video_date", "url"]
    items = _read(archive, path, "u.item", [*head, *(f"is_{genre}" for genre in genres)], separator="|")
    flags = zip(*(items[f"is_{genre}"].to_pylist() for genre in genres), strict=True)
    joined = pa.array(["|".join(g for g, flag in zip(genres, row, strict=True) if flag == "1") for row in flags])
    return _join(path, ratings, users, items["item_id"], pc.utf8_slice_codeunits(items["date"], -4), joined)


def _read_official_1m(archive: zipfile.ZipFile, path: Path) -> pa.Table:
    ratings = _read(archive, path, "ratings.dat", ["user_id", "item_id", "rating", "timestamp"], separator="::")
    users = _read(archive, path, "users.dat", ["user_id", "gender", "age", "occupation", "zip"], separator="::")
    items = _read(archive, path, "movies.dat", ["item_id", "title", "genres"], separator="::")
    years = pc.struct_field(pc.extract_regex(items["title"], r"\((?P<year>\d{4})\)\s*$"), "year")
    return _join(path, ratings, users, items["item_id"], years, items["genres"], integers=["occupation"])


def _join(
    path: Path,
    ratings: pa.Table,
    users: pa.Table,
    item_id: pa.ChunkedArray,
    year: pa.ChunkedArray,
    genres: pa.ChunkedArray,
    integers: Sequence[str] = (),
) -> pa.Table:
    known = pc.match_substring_regex(year, r"^\d{4}$")
    items = pa.table({"item_id": item_id, "year": pc.if_else(known, year, None), "genres": genres})
    table = ratings.join(users, "user_id", join_type="inner").join(items, "item_id", join_type="inner")
    if len(table) != len(ratings):
        raise ValueError(f"{path}: {len(ratings) - len(table)} ratings are of a user or a film that it does not list")
    types = dict.fromkeys(["user_id", "item_id", "rating", "age", "year", *integers], pa.int32())
    try:
        for name, kind in (types | {"timestamp": pa.int64()}).items():
            table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: column {name} should hold integers: {error}") from None
    return table


def _write(ratings: pa.Table, out: str, split: Split, seed: int, test_share: float, name: str) -> None:
    rows = ratings.filter(pc.not_equal(ratings["rating"], 3))
    # One order whatever the source's: the splits are those of (seed), not of a file.
    rows = rows.sort_by([(key, "ascending") for key in ("timestamp", "user_id", "item_id")])
    rows = rows.append_column("label", pc.cast(pc.greater(rows["rating"], 3), pa.int8())).select(COLUMNS)
    order = np.arange(len(rows))
    if split == "random":
        # RandomState's stream is frozen (NEP 19): the split will not change with numpy.
        order = np.random.RandomState(seed).permutation(len(rows))
    test = round(len(rows) * test_share)
    validation = round((len(rows) - test) * VALIDATION_SHARE)
    train = len(rows) - validation - test
    parts = np.split(order, [train, train + validation])
    with new_directory(out) as folder:
        for part, indices in zip(("train", "validation", "test"), parts, strict=True):
            (folder / part).mkdir()
            table = rows.take(np.sort(indices)).combine_chunks()
            pq.write_table(
                table, folder / part / "part-00000.parquet", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True
            )
    share = pc.mean(rows["label"]).as_py()
    print(
        f"{name}, {split} split: {train} train, {validation} validation, {test} test rows, {share:.1%} liked; in {out}"
    )
    print(LICENCE)
