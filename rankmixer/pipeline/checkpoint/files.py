"""The files of checkpoints: which directories are checkpoints, and whether what they hold is what was saved."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

import xxhash
from fsspec.implementations.local import LocalFileSystem

from rankmixer.pipeline.base.storage import move_directory, open_storage, reading, writing
from rankmixer.pipeline.checkpoint.safetensors_storage import checksum_of, write_file

MANIFEST = "manifest.json"
META = "meta.json"
NAME = r"step-\d{8,}"  # of a checkpoint
FORMAT = 2  # 1 had no checksum of the manifest itself
FORMAT_AGAIN = 3  # the files lie in `folder`, below the checkpoint's directory
_CHECKSUM = "xxh3_128"
_ASIDE = "damaged-"


@dataclass(frozen=True)
class Damage:
    """A file of a checkpoint that is not what was saved.

    Args:
        file: its path.
        found: what it is, and what was expected.
        aside: the new name of the checkpoint's directory, once that is set aside.
    """

    file: str
    found: str
    aside: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: found {self.found}"


class CheckpointFiles:
    """The directories of one run's checkpoints. Nothing here is collective.

    Args:
        directory: a path, or a URL of any filesystem that fsspec opens.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.filesystem, self.root = open_storage(os.fspath(directory))

    def path(self, *parts: str) -> str:
        """A path of this filesystem, below the directory."""
        return "/".join(filter(None, (self.root, *parts)))

    def url(self, name: str) -> str:
        """What tells a checkpoint from those of all other directories and filesystems."""
        return str(self.filesystem.unstrip_protocol(self.path(name)))

    def directories(self) -> list[str]:
        """All directories named as checkpoints, whole or not, by step."""
        names = [name for name in self._entries() if re.fullmatch(NAME, name)]
        return sorted(names, key=lambda name: int(name[5:]))

    def aside(self) -> list[str]:
        """What was set aside."""
        return sorted(name for name in self._entries() if re.fullmatch(rf"{_ASIDE}{NAME}(-\d+)?", name))

    def _entries(self) -> list[str]:
        self.filesystem.invalidate_cache()  # object stores remember listings
        try:
            with reading(self.root):
                entries = self.filesystem.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return [os.path.basename(entry.rstrip("/")) for entry in entries]

    def manifests(self) -> dict[str, dict[str, Any] | Damage]:
        """The manifest of every checkpoint, or what is wrong with it, by step."""
        found = {name: self.manifest(name) for name in self.directories()}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def names(self) -> list[str]:
        """The checkpoints that were saved, damaged or not, by step."""
        return list(self.manifests())

    def by_metric(self) -> list[str]:
        """The checkpoints that have a metric, the best first, the earlier of equals first."""
        metrics = {
            name: manifest["metric"] for name, manifest in self.manifests().items() if isinstance(manifest, dict)
        }
        known = [name for name, metric in metrics.items() if metric is not None]
        return sorted(known, key=lambda name: -metrics[name])

    def with_damaged_manifest(self) -> dict[str, Damage]:
        """The checkpoints of which not even the metric is known."""
        return {name: manifest for name, manifest in self.manifests().items() if isinstance(manifest, Damage)}

    def surplus(self, keep: int, saved: str | None = None) -> list[str]:
        """What may be removed: all but the last `keep` checkpoints, the best and `saved`; and what killed saves left.

        Damaged checkpoints are neither counted nor removed: their owner decides.
        """
        damaged = {name for name in self.names() if self.damage(name)}
        whole = [name for name in self.names() if name not in damaged]
        best = [name for name in self.by_metric() if name not in damaged][:1]
        kept = {saved, *whole[-keep:], *best, *damaged}
        return [name for name in self.directories() if name not in kept]

    def manifest(self, name: str) -> dict[str, Any] | Damage | None:
        """The manifest of a checkpoint, or what is wrong with it; None where there is none: a save was cut short.

        Raises:
            ValueError: it cannot be read, or it is of a format that is not known here.
        """
        path = self.path(name, MANIFEST)
        try:
            with reading(path):
                content = self.filesystem.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            manifest = json.loads(content)
        except ValueError as error:
            return Damage(path, f"{len(content)} bytes that are not JSON ({error})")
        return self._checked(path, manifest)

    def _checked(self, path: str, manifest: Any) -> dict[str, Any] | Damage:
        if not isinstance(manifest, dict):
            return Damage(path, f"JSON of type {type(manifest).__name__}, expected an object")
        expected = manifest.pop(_CHECKSUM, None)
        if expected is not None or manifest.get("format") != 1:
            found = _checksum(manifest)
            if found != expected:
                return Damage(path, f"contents of checksum {found}, it says {expected or 'nothing'}")
        keys = ("format", "step", "metric", "files")
        if missing := [key for key in keys if key not in manifest]:
            return Damage(path, f"no {missing[0]}")
        if manifest["format"] not in (1, FORMAT, FORMAT_AGAIN):
            raise ValueError(f"{path} is of format {manifest['format']}, expected {FORMAT_AGAIN}: update rankmixer")
        return manifest

    def folder(self, name: str) -> str:
        """The path of the folder with a checkpoint's files: its directory, or one below that where it was saved again.

        Raises:
            ValueError: the manifest, which says so, cannot be read.
        """
        manifest = self.manifest(name)
        return self.path(name, manifest.get("folder", "") if isinstance(manifest, dict) else "")

    def write_manifest(
        self, name: str, step: int, metric: float | None, files: dict[str, dict[str, Any]], folder: str = ""
    ) -> None:
        """Make a checkpoint of the files in `folder`, which are written. A kill leaves the manifest before, or this."""
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "metric": metric, "files": files}
        if folder:
            manifest |= {"format": FORMAT_AGAIN, "folder": folder}
        manifest[_CHECKSUM] = _checksum(manifest)
        content = _json(manifest)
        if isinstance(self.filesystem, LocalFileSystem):
            write_file(self.filesystem, self.path(name, f"{MANIFEST}.partial"), [content])
            os.replace(self.path(name, f"{MANIFEST}.partial"), self.path(name, MANIFEST))
        else:  # object stores make a file appear whole, and replace it so
            self.filesystem.pipe_file(self.path(name, MANIFEST), content)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, or what a save cut short has left of one."""
        self.filesystem.invalidate_cache()
        # The manifest goes first: a removal that is cut short leaves no checkpoint with files missing.
        for path in (self.path(name, MANIFEST), self.path(name)):
            if self.filesystem.exists(path):
                self.filesystem.rm(path, recursive=True)

    def set_aside(self, name: str) -> str:
        """Rename a damaged checkpoint, so that it is none any more, and its step can be saved again; return its name.

        Raises:
            OSError: it cannot be renamed.
            StorageError: the same, of a storage that is not local.
        """
        self.filesystem.invalidate_cache()
        aside = _ASIDE + name
        number = 1
        with writing(self.filesystem, self.path(name)):
            while self.filesystem.exists(self.path(aside)):
                number += 1
                aside = f"{_ASIDE}{name}-{number}"
            move_directory(self.filesystem, self.path(name), self.path(aside))
        self.filesystem.invalidate_cache()
        return aside

    def damage(self, name: str) -> Damage | None:
        """What is wrong with the manifest of a checkpoint, or with the size of a file that it lists.

        Raises:
            ValueError: there is no such checkpoint, or it cannot be read.
        """
        manifest = self.manifest(name)
        if manifest is None:
            raise ValueError(f"{self.root} has no checkpoint {name!r}; it has {listed(self.names())}")
        if isinstance(manifest, Damage):
            return manifest
        with reading(self.path(name)):
            return self.wrong_size(self.path(name, manifest.get("folder", "")), manifest["files"])

    def wrong_size(self, folder: str, files: dict[str, dict[str, Any]]) -> Damage | None:
        """The first of the files in a folder that is not there, or not as long as the manifest says or will say."""
        self.filesystem.invalidate_cache()
        try:
            entries = self.filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            entries = []
        sizes = {os.path.basename(entry["name"]): entry["size"] for entry in entries}
        for file, entry in files.items():
            if sizes.get(file) != entry["size"]:
                found = f"{sizes[file]} bytes" if file in sizes else "no such file"
                return Damage(f"{folder}/{file}", f"{found}, its manifest says {entry['size']} bytes")
        return None

    def damage_of_contents(self, name: str, files: list[str]) -> Damage | None:
        """What is wrong with the bytes of some files of a checkpoint of which `damage` found none."""
        manifest = self.manifest(name)
        if not isinstance(manifest, dict):
            return manifest or Damage(self.path(name, MANIFEST), "no such file")
        folder = self.path(name, manifest.get("folder", ""))
        for file in files:
            path, expected = f"{folder}/{file}", manifest["files"][file]["xxh3_128"]
            try:
                with reading(path):
                    found = checksum_of(self.filesystem, path)
            except FileNotFoundError:
                return Damage(path, "no such file")
            if found != expected:
                return Damage(path, f"checksum {found}, its manifest says {expected}")
        return None

    def error(self, name: str, damage: Damage) -> ValueError:
        """The error of a checkpoint that is damaged; it names the others."""
        others = [other for other in self.names() if other != name]
        return ValueError(
            f"cannot load {self.path(name)}: {damage}; the checkpoint is damaged, remove {self.path(name)} and load "
            f"another one ({listed(others)})"
        )

    def read_json(self, name: str, file: str) -> Any:
        """What a JSON file of a checkpoint holds."""
        with reading(self.path(name, file)):
            content = self.filesystem.cat_file(f"{self.folder(name)}/{file}")
        return json.loads(content)

    def write_json(self, folder: str, file: str, value: Any) -> dict[str, Any]:
        """Write a JSON file into a folder; return its size and checksum."""
        return write_file(self.filesystem, f"{folder}/{file}", [_json(value)])


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _checksum(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128(_json(manifest)).hexdigest()


def listed(names: Any, limit: int = 5) -> str:
    """Some names as text, sorted; the first `limit` of them.

    >>> listed({"b", "a", "c"}, limit=2), listed([])
    ('a, b and 1 more', 'none')
    """
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"
