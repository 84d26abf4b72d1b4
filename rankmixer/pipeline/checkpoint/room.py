"""Where the files of a save go, so that a step saved again keeps its checkpoint until the new one is whole.

Object stores have no rename, so that a directory cannot be exchanged for another. What both they and file systems do
whole or not at all is to replace one file, the manifest: it names the folder below the checkpoint's directory,
`again-2` and so on, that holds the files of the second and each later save of a step.
"""

from __future__ import annotations

import os
import re

from rankmixer.pipeline.checkpoint.files import CheckpointFiles

_WRITTEN = r"again-\d+|rank-\d+\.safetensors|tensors\.json|meta\.json|manifest\.json\.partial"


def make_room(files: CheckpointFiles, name: str) -> str:
    """Choose the folder for the files of a save: "", the checkpoint's directory, or one below if that is taken.

    What killed saves have left there goes.

    Raises:
        ValueError: there is a manifest, and it cannot be read.
    """
    manifest = files.manifest(name)
    if manifest is None:
        files.remove(name)
        return ""
    remove_leftovers(files, name)
    files.filesystem.invalidate_cache()
    number = 2
    while files.filesystem.exists(files.path(name, f"again-{number}")):
        number += 1
    return f"again-{number}"


def discard(files: CheckpointFiles, name: str, folder: str) -> None:
    """Remove the files of a save that failed, and not the checkpoint of its step that was there before."""
    if not folder:
        files.remove(name)
    elif files.folder(name) != files.path(name, folder):
        files.filesystem.rm(files.path(name, folder), recursive=True)


def remove_leftovers(files: CheckpointFiles, name: str) -> None:
    """Remove what saves have written into a checkpoint's directory and its manifest does not name."""
    manifest = files.manifest(name)
    if not isinstance(manifest, dict):  # which files it needs is not known
        return
    kept = {manifest["folder"]} if manifest.get("folder") else set(manifest["files"])
    files.filesystem.invalidate_cache()
    for entry in files.filesystem.ls(files.path(name), detail=False):
        file = os.path.basename(entry.rstrip("/"))
        if re.fullmatch(_WRITTEN, file) and file not in kept:
            files.filesystem.rm(files.path(name, file), recursive=True)
