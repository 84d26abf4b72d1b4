"""Safetensors files as storage of torch.distributed.checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan, ReadItem
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType

from rankmixer.pipeline.checkpoint import safetensors_storage
from rankmixer.pipeline.checkpoint.safetensors_storage import SafetensorsReader, SafetensorsWriter

STATE = {
    "double": torch.arange(6, dtype=torch.float64).view(2, 3),
    "float": torch.linspace(-1, 1, 35).view(5, 7),
    "half": torch.tensor([1.5, -2.5, 3.0]).to(torch.bfloat16),
    "byte": torch.tensor([[7], [255]], dtype=torch.uint8),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 4),
    "columns": torch.arange(12).view(3, 4).t(),  # not contiguous
    "cube": torch.arange(2 * 3 * 5, dtype=torch.int32).view(2, 3, 5),
}
FILE = "rank-00000.safetensors"


def save(directory: str, state: dict[str, Tensor]) -> SafetensorsWriter:
    writer = SafetensorsWriter(*fsspec.url_to_fs(directory))
    with pytest.warns(UserWarning, match=r"torch\.distributed is disabled"):
        dcp.save(state, storage_writer=writer)
    return writer


def load(directory: str, state: dict[str, Tensor]) -> None:
    reader = SafetensorsReader(*fsspec.url_to_fs(directory))
    with pytest.warns(UserWarning, match=r"torch\.distributed is disabled"):
        dcp.load(state, storage_reader=reader)


@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_dcp_saves_and_loads_every_kind_of_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(safetensors_storage, "_BLOCK", block)
    save(str(tmp_path), STATE)
    loaded = {name: torch.ones_like(value) for name, value in STATE.items()}
    load(str(tmp_path), loaded)
    for name, value in STATE.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value), name


def test_any_safetensors_reader_opens_the_file(tmp_path: Path) -> None:
    save(str(tmp_path), STATE)
    found = load_file(tmp_path / FILE)
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert torch.equal(found[name], value), name


def test_size_and_checksum_are_those_of_the_files(tmp_path: Path) -> None:
    files = save(str(tmp_path), STATE).files
    assert sorted(files) == [FILE, "tensors.json"] == sorted(path.name for path in tmp_path.iterdir())
    for name, entry in files.items():
        data = (tmp_path / name).read_bytes()
        assert entry == {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}


@pytest.mark.parametrize("block", [1, 60, 2**20])
@pytest.mark.parametrize(
    ("name", "offsets", "lengths"),
    [("float", (1, 2), (3, 4)), ("float", (4, 0), (1, 7)), ("cube", (1, 0, 2), (1, 3, 2)), ("half", (1,), (2,))],
)
def test_part_of_a_tensor(
    monkeypatch: pytest.MonkeyPatch, block: int, name: str, offsets: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(safetensors_storage, "_BLOCK", block)
    save("memory://part-of-a-tensor", STATE)
    reader = SafetensorsReader(*fsspec.url_to_fs("memory://part-of-a-tensor"))
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    zeros = torch.zeros(len(lengths), dtype=torch.int64).tolist()
    planner = DefaultLoadPlanner()
    planner.set_up_planner({name: torch.zeros(lengths, dtype=STATE[name].dtype)}, metadata, is_coordinator=True)
    item = ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(name, zeros),
        dest_offsets=torch.Size(zeros),
        storage_index=MetadataIndex(name, zeros),
        storage_offsets=torch.Size(offsets),
        lengths=torch.Size(lengths),
    )
    reader.read_data(LoadPlan([item]), planner).wait()
    part = STATE[name][tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    assert torch.equal(planner.state_dict[name], part)


def test_a_file_that_is_not_what_tensors_json_says(tmp_path: Path) -> None:
    save(str(tmp_path), STATE)
    whole = (tmp_path / FILE).read_bytes()
    read = {"float": torch.zeros(5, 7)}

    (tmp_path / FILE).write_bytes(whole[:-60])
    with pytest.raises(dcp.CheckpointException, match=rf"{FILE}: the file ends early: \d+ bytes found, expected \d+"):
        load(str(tmp_path), {"byte": torch.zeros(2, 1, dtype=torch.uint8), "flag": torch.zeros(3, dtype=torch.bool)})

    (tmp_path / FILE).write_bytes(b"\xff" * 100)
    with pytest.raises(dcp.CheckpointException, match=rf"{FILE}: not a safetensors file"):
        load(str(tmp_path), read)

    (tmp_path / FILE).write_bytes(whole.replace(b'"float"', b'"floaT"'))
    with pytest.raises(
        dcp.CheckpointException, match=r"float: found nothing, tensors.json says F32 \[5, 7\], 140 bytes"
    ):
        load(str(tmp_path), read)

    (tmp_path / FILE).write_bytes(whole)
    tensors = json.loads((tmp_path / "tensors.json").read_text())
    tensors["float"]["dtype"] = "F64"
    (tmp_path / "tensors.json").write_text(json.dumps(tensors))
    with pytest.raises(dcp.CheckpointException, match=r"found {'dtype': 'F32'.*says F64 \[5, 7\], 280 bytes"):
        load(str(tmp_path), read)
