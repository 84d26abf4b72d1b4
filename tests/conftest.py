"""Checks the jaxtyping annotations of rankmixer_head during tests, where beartype is installed."""

from importlib.util import find_spec
from pathlib import Path

import jaxtyping

HEAD = Path(__file__).parents[1] / "rankmixer_head"

if find_spec("beartype"):
    # config.py checks what it is given by itself, and its errors are tested.
    modules = [f"rankmixer_head.{path.stem}" for path in HEAD.glob("*.py") if path.stem not in ("__init__", "config")]
    jaxtyping.install_import_hook(modules, "beartype.beartype")
