import contextlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.files import ParquetFiles, RowGroup


def write(path: str, rows: int, row_group_size: int = 4, filesystem: object = None) -> str:
    table = pa.table({"a": pa.array(range(rows), pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_size, filesystem=filesystem)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three files of 6, 0 and 3 rows, one of them deeper, and things that are no data."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "_temporary").mkdir()
    write(str(tmp_path / "b.parquet"), 6)
    write(str(tmp_path / "c.parquet"), 0)
    write(str(tmp_path / "deep" / "a.parquet"), 3)
    write(str(tmp_path / "_temporary" / "part.parquet"), 5)
    (tmp_path / "_SUCCESS").touch()
    return str(tmp_path)


def names(files: ParquetFiles, folder: str) -> list[str]:
    return [file.path.removeprefix(folder).lstrip("/") for file in files.files]


def test_a_directory(folder: str) -> None:
    files = ParquetFiles.open(folder)
    assert names(files, folder) == ["b.parquet", "c.parquet", "deep/a.parquet"]
    assert files.row_groups == [
        RowGroup(file=0, index=0, num_rows=4, first_row=0),
        RowGroup(file=0, index=1, num_rows=2, first_row=4),
        RowGroup(file=2, index=0, num_rows=3, first_row=0),
    ]
    assert files.num_rows == 9
    assert files.schema == pa.schema([("a", pa.int64())])


def test_paths_globs_and_urls(folder: str) -> None:
    assert names(ParquetFiles.open(f"{folder}/b.parquet"), folder) == ["b.parquet"]
    assert names(ParquetFiles.open(f"{folder}/*.parquet"), folder) == ["b.parquet", "c.parquet"]
    assert names(ParquetFiles.open(f"{folder}/**/a.parquet"), folder) == ["deep/a.parquet"]
    assert names(ParquetFiles.open(f"file://{folder}/deep"), folder) == ["deep/a.parquet"]
    twice = [f"{folder}/c.parquet", f"{folder}/b.parquet", folder]
    assert names(ParquetFiles.open(twice), folder) == ["b.parquet", "c.parquet", "deep/a.parquet"]


def test_a_name_with_magic_characters_is_a_name_first(tmp_path: Path) -> None:
    path = write(str(tmp_path / "a[1].parquet"), 2)
    assert ParquetFiles.open(path).num_rows == 2


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    for name, rows in (("x/b.parquet", 5), ("x/a.parquet", 2)):
        with memory.open(f"/{name}", "wb") as file:
            write(file, rows)
    yield memory
    memory.rm("/x", recursive=True)


def test_a_filesystem_of_fsspec(memory: fsspec.AbstractFileSystem) -> None:
    for paths in ("memory://x", "memory://x/*.parquet", ["memory://x/b.parquet", "memory://x/a.parquet"]):
        files = ParquetFiles.open(paths)
        assert [file.path for file in files.files] == ["/x/a.parquet", "/x/b.parquet"]
        assert files.num_rows == 7
    assert ParquetFiles.open("/x/b.parquet", filesystem=memory).num_rows == 5
    with files.files[1].open() as opened:
        assert opened.read_row_group(1)["a"].to_pylist() == [4]


def test_a_filesystem_of_pyarrow(folder: str) -> None:
    filesystem = pafs.SubTreeFileSystem(folder, pafs.LocalFileSystem())
    files = ParquetFiles.open(["deep", "b.parquet"], filesystem=filesystem)
    assert [file.path for file in files.files] == ["b.parquet", "deep/a.parquet"]
    with files.files[1].open() as opened:
        assert opened.read()["a"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.parquet", "none.parquet: found no file; expected a Parquet file, directory or glob. Check the path."),
        ("*.orc", r"\*.orc: found no file; expected a Parquet file"),
        ("empty", "empty: found no .parquet file in this directory; expected at least one. Check the path."),
        ("nosuchscheme://a/b", "found a URL that fsspec does not open"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message), contextlib.chdir(tmp_path):
        ParquetFiles.open(path)


def test_no_path_at_all() -> None:
    with pytest.raises(ValueError, match="no paths were given"):
        ParquetFiles.open([])


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.touch()
    with pytest.raises(
        DataError, match=r"broken.parquet: found an empty file \(0 bytes\); expected a whole Parquet file"
    ):
        ParquetFiles.open(str(tmp_path))
    whole = Path(write(str(tmp_path / "whole.parquet"), 100)).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:6], b"id,label\n1,0\n", whole[:-9] + b"\xff" * 5 + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"broken.parquet: found a file whose footer cannot be read \(.+\); expected"
        ):
            ParquetFiles.open(str(tmp_path))


def test_a_file_system_that_fails_is_named(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403: no access\n to x")

    monkeypatch.setattr(type(memory), "find", refuse)
    with pytest.raises(
        DataError, match=r"memory://x: found no answer \(RuntimeError: 403: no access to x\); expected files"
    ):
        ParquetFiles.open("memory://x")
    monkeypatch.undo()
    monkeypatch.setattr(type(memory), "_open", refuse)
    with pytest.raises(
        DataError, match=r"/x/a.parquet: found a file whose footer cannot be read \(403: no access to x\)"
    ):
        ParquetFiles.open("memory://x")
