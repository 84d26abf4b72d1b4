import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rankmixer.pipeline.files.files as files_module
from rankmixer.pipeline.base.errors import DataError
from rankmixer.pipeline.files.files import ParquetFiles
from rankmixer.pipeline.files.footers import Footers

Read = list[str]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Five files of 1 to 5 rows, the third of another schema."""
    (tmp_path / "data").mkdir()
    for number in range(5):
        write(tmp_path / "data" / f"{number}.parquet", number + 1, pa.int32() if number == 2 else pa.int64())
    return str(tmp_path / "data")


@pytest.fixture
def footers_read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The names of the files whose footers are read; a manifest is kept for any number of files."""
    names: Read = []
    read = files_module.read_footer

    def noting(path: str, *arguments: Any) -> Any:
        names.append(Path(path).stem)
        return read(path, *arguments)

    monkeypatch.setattr(files_module, "read_footer", noting)
    monkeypatch.setattr(files_module, "MANIFEST_FILES", 5)
    return names


def write(path: Path, rows: int, type_: pa.DataType = pa.int64()) -> None:  # noqa: B008
    pq.write_table(pa.table({"a": pa.array(range(rows), type_)}), path, row_group_size=2)


def reopened(folder: str, manifests: Path, footers_read: Read) -> tuple[ParquetFiles, list[str]]:
    """The files, as if nothing were known; and which footers were read for that."""
    footers_read.clear()
    opened = ParquetFiles.open(folder, manifests=str(manifests))
    return opened, sorted(footers_read)


def facts(files: ParquetFiles) -> list[tuple[str, pa.Schema, tuple[int, ...]]]:
    return [(file.path, file.schema, file.row_groups) for file in files.files]


def test_a_second_start_reads_no_footer(folder: str, tmp_path: Path, footers_read: Read) -> None:
    cold, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert read == ["0", "1", "2", "3", "4"]
    warm, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert read == []
    assert facts(warm) == facts(cold)
    assert warm.row_groups == cold.row_groups
    assert len({id(file.schema) for file in warm.files}) == 2
    with warm.files[4].open() as file:
        assert file.read_row_group(2)["a"].to_pylist() == [4]
    assert [file.footers.get(file.path) is not None for file in warm.files] == [False] * 4 + [True]
    assert len(list((tmp_path / "manifests").iterdir())) == 1


def test_what_changes_came_or_went_is_noticed(folder: str, tmp_path: Path, footers_read: Read) -> None:
    reopened(folder, tmp_path / "manifests", footers_read)
    write(Path(folder, "1.parquet"), 7)
    _, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert read == ["1"]
    # The same size, another time.
    os.utime(Path(folder, "3.parquet"), ns=(1, 1))
    write(Path(folder, "5.parquet"), 3)
    files, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert read == ["3", "5"]
    assert files.num_rows == 1 + 7 + 3 + 4 + 5 + 3
    Path(folder, "0.parquet").unlink()
    files, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert (files.num_rows, read) == (22, [])
    (manifest,) = (tmp_path / "manifests").iterdir()
    assert pq.read_table(manifest).num_rows == 5


def test_a_file_that_changes_after_the_start_is_refused(folder: str, tmp_path: Path, footers_read: Read) -> None:
    reopened(folder, tmp_path / "manifests", footers_read)
    files, _ = reopened(folder, tmp_path / "manifests", footers_read)
    write(Path(folder, "3.parquet"), 9)
    with pytest.raises(
        DataError, match=r"3.parquet: found a file that has changed since its footer was read .*; expected"
    ):
        files.files[3].open()


@pytest.mark.parametrize("damage", ["torn", "flipped", "text", "other", "empty"])
def test_a_damaged_manifest_is_made_again_and_that_is_said(
    folder: str, tmp_path: Path, footers_read: Read, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cold, _ = reopened(folder, tmp_path / "manifests", footers_read)
    (manifest,) = (tmp_path / "manifests").iterdir()
    whole = manifest.read_bytes()
    if damage == "flipped":  # a byte of the first page: only its checksum tells
        manifest.write_bytes(whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:])
    elif damage == "other":
        pq.write_table(pa.table({"a": [1]}), manifest)
    else:
        manifest.write_bytes({"torn": whole[: len(whole) // 2], "text": b"{}" * 100, "empty": b""}[damage])
    again, read = reopened(folder, tmp_path / "manifests", footers_read)
    assert f"warning: {manifest} cannot be used" in capfd.readouterr().err
    assert (len(read), facts(again)) == (5, facts(cold))
    assert reopened(folder, tmp_path / "manifests", footers_read)[1] == []


def test_a_directory_that_cannot_be_written_costs_a_warning(
    folder: str, tmp_path: Path, footers_read: Read, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    files, read = reopened(folder, tmp_path / "taken", footers_read)
    assert (files.num_rows, len(read)) == (15, 5)
    assert "cannot be written" in capfd.readouterr().err


def test_an_interrupted_write_leaves_the_old_manifest(
    folder: str, tmp_path: Path, footers_read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened(folder, tmp_path / "manifests", footers_read)
    write(Path(folder, "1.parquet"), 7)

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rankmixer.pipeline.files.manifest.pq.write_table", full)
        assert reopened(folder, tmp_path / "manifests", footers_read)[0].num_rows == 20
    assert [path.suffix for path in (tmp_path / "manifests").iterdir()] == [".parquet"]
    assert reopened(folder, tmp_path / "manifests", footers_read)[1] == ["1"]


def test_few_files_keep_no_manifest(
    folder: str, tmp_path: Path, footers_read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "MANIFEST_FILES", 6)
    reopened(folder, tmp_path / "manifests", footers_read)
    assert not (tmp_path / "manifests").exists()


def test_another_filesystem(tmp_path: Path, footers_read: Read) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(5):
        with memory.open(f"/manifest/{number}.parquet", "wb") as file:
            pq.write_table(pa.table({"a": range(number)}), file)
    assert len(reopened("memory://manifest", tmp_path, footers_read)[1]) == 5
    assert reopened("memory://manifest", tmp_path, footers_read)[1] == []
    with memory.open("/manifest/2.parquet", "wb") as file:
        pq.write_table(pa.table({"a": range(2)}), file)
    assert reopened("memory://manifest", tmp_path, footers_read)[1] == ["2"]
    memory.rm("/manifest", recursive=True)


def test_footers_are_held_for_the_files_used_last(folder: str, footers_read: Read) -> None:
    files = ParquetFiles.open(folder)
    held = Footers(limit=sum(file.metadata.serialized_size for file in files.files[3:]))
    for file in files.files:
        held.put(file.path, file.metadata)
    assert [held.get(file.path) is None for file in files.files] == [True, True, True, False, False]
