"""Checkpoints that are not what was saved: found, said, set aside; and storage that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import xxhash
from fsspec.implementations.memory import MemoryFileSystem

from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from tests.pipeline.checkpoint.test_checkpoint import state, value_of


def test_a_damaged_manifest_is_told_apart_from_none_and_is_not_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1.0), {}, metric=0.5)
    checkpoints.save(2, state(2.0), {})
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    (tmp_path / "notes").mkdir()
    assert checkpoints.latest() == "step-00000002"
    with pytest.raises(
        ValueError, match=r"step-00000002/manifest.json: found \d+ bytes that are not JSON .*00000001\)"
    ):
        checkpoints.load("step-00000002", state())
    with pytest.raises(ValueError, match=r"cannot say which checkpoint of .* is the best: .*2/manifest.json: found"):
        checkpoints.best()
    checkpoints.save(3, state(3.0), {})
    kept = ["notes", "step-00000001", "step-00000002", "step-00000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-8])
    return r"rank-00000.safetensors: found \d+ bytes, its manifest says \d+ bytes; .* remove .*step-00000002 and load"


def remove(path: Path) -> str:
    path.unlink()
    return r"rank-00000.safetensors: found no such file, its manifest says \d+ bytes; .*\(step-00000001\)"


def change(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return r"rank-00000.safetensors: found checksum [0-9a-f]{32}, its manifest says [0-9a-f]{32}; the checkpoint is dam"


@pytest.mark.parametrize("damage", [truncate, remove, change])
def test_damage_is_found(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), {})
    checkpoints.save(2, state(2.0), {})
    message = damage(tmp_path / "step-00000002" / "rank-00000.safetensors")
    with pytest.raises(ValueError, match=rf"(?s)cannot load .*step-00000002: .*{message}"):
        checkpoints.load("step-00000002", state())


def rewritten(manifest: Path, **changes: Any) -> None:
    """Change a manifest and its checksum of itself, which format 1 had not."""
    tree = json.loads(manifest.read_text()) | changes
    del tree["xxh3_128"]
    if tree["format"] != 1:
        tree["xxh3_128"] = xxhash.xxh3_128(json.dumps(tree, indent=1).encode()).hexdigest()
    manifest.write_text(json.dumps(tree, indent=1))


def test_another_format_is_refused_and_nothing_is_done_to_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), {})
    checkpoints.save(2, state(2.0), {})
    rewritten(tmp_path / "step-00000002" / "manifest.json", format=4)
    for read in (
        checkpoints.latest,
        lambda: checkpoints.load("step-00000002", state()),
        lambda: checkpoints.whole("latest"),
    ):
        with pytest.raises(ValueError, match=r"00002/manifest.json is of format 4, expected 3: update rankmixer"):
            read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_format_1_which_had_no_checksum_of_the_manifest_still_loads(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0), {"epoch": 3}, metric=0.5)
    rewritten(tmp_path / "step-00000001" / "manifest.json", format=1)
    loaded = state()
    assert checkpoints.load("step-00000001", loaded) == {"epoch": 3}
    assert value_of(loaded) == 1.0
    assert checkpoints.best() == "step-00000001"


def flip(path: Path) -> str:
    content = path.read_bytes().replace(b'"metric": 0.5', b'"metric": 0.9')
    path.write_bytes(content)
    return r"manifest.json: found contents of checksum [0-9a-f]{32}, it says [0-9a-f]{32}"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("rank-00000.safetensors", truncate),
        ("rank-00000.safetensors", remove),
        ("tensors.json", change),
        ("meta.json", change),
        ("manifest.json", flip),
    ],
)
def test_the_one_before_is_used_and_the_damaged_one_set_aside(
    tmp_path: Path, file: str, damage: Callable[[Path], str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"step": step}, metric=0.5)
    found = damage(tmp_path / "step-00000003" / file).partition(";")[0].replace("rank-00000.safetensors", file)
    change(tmp_path / "step-00000002" / "meta.json")
    name, damaged = checkpoints.whole("latest")
    assert name == "step-00000001"
    assert list(damaged) == ["step-00000003", "step-00000002"]
    assert re.search(found, str(damaged["step-00000003"]))
    assert damaged["step-00000002"].aside == "damaged-step-00000002"
    assert checkpoints.names() == ["step-00000001"]
    assert checkpoints.best() == "step-00000001"
    loaded = state()
    assert checkpoints.load(name, loaded) == {"step": 1}
    assert value_of(loaded) == 1.0
    # The step can be saved again, and be damaged again.
    for again in ("damaged-step-00000003-2", "damaged-step-00000003-3"):
        checkpoints.save(3, state(4.0), {})
        change(tmp_path / "step-00000003" / "meta.json")
        assert checkpoints.whole("latest")[1]["step-00000003"].aside == again
        assert (tmp_path / again / "manifest.json").exists()


class Remote(MemoryFileSystem):
    """An object store as some are: it remembers listings until told not to, and its reads may fail."""

    protocol = "remote"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    listings: ClassVar[dict[str, Any]] = {}
    fails: ClassVar[str] = "nothing"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path).rstrip("/")
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=True, **kwargs)
        return [entry if detail else entry["name"] for entry in self.listings[path]]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._fail(path)
        return super().cat_file(path, *args, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            self._fail(path)
        return super()._open(path, mode, **kwargs)

    def _fail(self, path: str) -> None:
        if self.fails in path:
            raise OSError(5, "Input/output error")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Remote]]:
    fsspec.register_implementation("remote", Remote, clobber=True)
    yield Remote
    Remote.store.clear()
    Remote.listings.clear()
    Remote.pseudo_dirs[:] = [""]


def test_listings_that_a_filesystem_remembers(remote: type[Remote]) -> None:
    mine, other = Checkpoints("remote://run/checkpoints"), Checkpoints("remote://run/checkpoints", keep=9)
    mine.save(1, state(1.0), {})
    assert other.names() == ["step-00000001"]
    mine.save(2, state(2.0), {})
    assert other.latest() == "step-00000002"
    other.load("step-00000002", state())
    remote.store[mine._files.path("step-00000002", "rank-00000.safetensors")].write(b"over")
    name, damaged = other.whole("latest")
    assert name == "step-00000001"
    assert damaged["step-00000002"].aside == "damaged-step-00000002"
    assert mine.names() == ["step-00000001"]
    mine.save(2, state(3.0), {})
    assert other.latest() == "step-00000002"


@pytest.mark.parametrize("file", ["manifest.json", "meta.json", "tensors.json", "rank-00000.safetensors"])
def test_a_read_that_fails_is_one_sentence_and_no_damage(
    remote: type[Remote], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    checkpoints = Checkpoints("remote://run/checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "fails", f"step-00000002/{file}")
        expected = (
            rf"step-00000002/{file} cannot be read: OSError: \[Errno 5\] Input/output error; this may pass: try ag"
        )
        for read in (lambda: checkpoints.load("step-00000002", state()), lambda: checkpoints.whole("latest")):
            with pytest.raises(ValueError, match=expected) as caught:
                read()
            assert "\n" not in str(caught.value)
    assert checkpoints.whole("latest") == ("step-00000002", {})


def test_a_checkpoint_that_was_just_verified_is_read_once_more_and_may_fail(
    remote: type[Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints("remote://run/checkpoints")
    checkpoints.save(1, state(1.0), {})
    checkpoints.whole("latest")
    monkeypatch.setattr(Remote, "fails", "rank-00000")
    with pytest.raises(ValueError, match=r"cannot load .*step-00000001: .*step-00000001 cannot be read: OSError"):
        checkpoints.load("step-00000001", state())


def test_none_whole_and_nothing_is_touched(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step), {}, metric=0.5)
        change(tmp_path / f"step-0000000{step}" / "meta.json")
    for which, order in (("latest", [2, 1]), ("best", [1, 2])):
        name, damaged = checkpoints.whole(which)  # type: ignore[arg-type]
        assert name is None
        assert list(damaged) == [f"step-0000000{step}" for step in order]
    assert checkpoints.names() == ["step-00000001", "step-00000002"]


def test_what_cannot_be_renamed_is_passed_over_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    change(tmp_path / "step-00000002" / "meta.json")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoints._files.filesystem, "mv", refuse)
    with pytest.warns(UserWarning, match=r"cannot rename the damaged .*step-00000002: .*Read-only"):
        name, damaged = checkpoints.whole("latest")
    assert (name, damaged["step-00000002"].aside) == ("step-00000001", None)
