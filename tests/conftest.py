"""Checks the jaxtyping annotations of rankmixer_head during tests, where beartype is installed."""

from importlib.util import find_spec
from pathlib import Path

import jaxtyping

HEAD = Path(__file__).parents[1] / "rankmixer_head"

if find_spec("beartype"):
    # config.py checks what it is given by itself, and its errors are tested.
    files = [path for path in HEAD.rglob("*.py") if path.stem not in ("__init__", "config")]
    modules = [".".join(path.relative_to(HEAD.parent).with_suffix("").parts) for path in files]
    jaxtyping.install_import_hook(modules, "beartype.beartype")
