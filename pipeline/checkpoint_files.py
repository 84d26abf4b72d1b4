"""The files of checkpoints: which directories are checkpoints, and whether what they hold is what was saved."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import fsspec

from pipeline.safetensors_storage import checksum_of, write_file

MANIFEST = "manifest.json"
META = "meta.json"
FORMAT = 1


class CheckpointFiles:
    """The directories of one run's checkpoints. Nothing here is collective.

    Args:
        directory: a path, or a URL of any filesystem that fsspec opens.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.filesystem, self.root = fsspec.url_to_fs(os.fspath(directory))

    def path(self, *parts: str) -> str:
        """A path of this filesystem, below the directory."""
        return "/".join((self.root, *parts))

    def url(self, name: str) -> str:
        """What tells a checkpoint from those of all other directories and filesystems."""
        return str(self.filesystem.unstrip_protocol(self.path(name)))

    def directories(self) -> list[str]:
        """All directories named as checkpoints, whole or not, by step."""
        self.filesystem.invalidate_cache()  # object stores remember listings
        try:
            entries = self.filesystem.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        names = [os.path.basename(entry.rstrip("/")) for entry in entries]
        return sorted((name for name in names if re.fullmatch(r"step-\d{8,}", name)), key=lambda name: int(name[5:]))

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifest of every checkpoint, by step."""
        found = {name: self.manifest(name) for name in self.directories()}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest of a checkpoint; None without one, or when its writing was cut short."""
        try:
            manifest = self.read_json(name, MANIFEST)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and "files" in manifest else None

    def write_manifest(self, name: str, step: int, metric: float | None, files: dict[str, dict[str, Any]]) -> None:
        """Make a checkpoint of a directory whose other files are written."""
        self.write_json(name, MANIFEST, {"format": FORMAT, "step": step, "metric": metric, "files": files})

    def remove(self, name: str) -> None:
        """Remove a checkpoint, or what a save cut short has left of one."""
        self.filesystem.invalidate_cache()
        # The manifest goes first: a removal that is cut short leaves no checkpoint with files missing.
        for path in (self.path(name, MANIFEST), self.path(name)):
            if self.filesystem.exists(path):
                self.filesystem.rm(path, recursive=True)

    def verify(self, name: str) -> None:
        """Compare the sizes of a checkpoint's files with its manifest.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        manifest = self.manifest(name)
        if manifest is None:
            raise ValueError(f"{self.root} has no checkpoint {name!r}; it has {listed(self.manifests())}")
        if manifest["format"] != FORMAT:
            raise ValueError(f"{name} is of format {manifest['format']}, expected {FORMAT}: update rankmixer")
        entries = self.filesystem.ls(self.path(name), detail=True)
        sizes = {os.path.basename(entry["name"]): entry["size"] for entry in entries}
        for file, entry in manifest["files"].items():
            if sizes.get(file) != entry["size"]:
                found = f"{sizes[file]} bytes" if file in sizes else "no such file"
                raise self._damaged(name, file, found, f"{entry['size']} bytes")

    def verify_contents(self, name: str, files: list[str]) -> None:
        """Compare the bytes of some files with the checksums of the manifest."""
        manifest = self.manifest(name)
        assert manifest is not None, "verified before"
        for file in files:
            found, expected = checksum_of(self.filesystem, self.path(name, file)), manifest["files"][file]["xxh3_128"]
            if found != expected:
                raise self._damaged(name, file, f"checksum {found}", expected)

    def _damaged(self, name: str, file: str, found: str, expected: str) -> ValueError:
        others = [other for other in self.manifests() if other != name]
        return ValueError(
            f"{self.path(name, file)}: found {found}, its manifest says {expected}; the checkpoint is damaged, "
            f"remove {self.path(name)} and load another one ({listed(others)})"
        )

    def read_json(self, name: str, file: str) -> Any:
        """What a JSON file of a checkpoint holds."""
        return json.loads(self.filesystem.cat_file(self.path(name, file)))

    def write_json(self, name: str, file: str, value: Any) -> dict[str, Any]:
        """Write a JSON file of a checkpoint; return its size and checksum."""
        return write_file(self.filesystem, self.path(name, file), [json.dumps(value, indent=1).encode()])


def listed(names: Any, limit: int = 5) -> str:
    """Some names as text, sorted; the first `limit` of them.

    >>> listed({"b", "a", "c"}, limit=2), listed([])
    ('a, b and 1 more', 'none')
    """
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"
