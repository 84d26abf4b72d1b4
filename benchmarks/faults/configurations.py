"""Configurations that somebody got wrong: each must be a clear error, or run."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.server import ForkServer, Hung

SECONDS = 120.0
STRANGE: tuple[Any, ...] = (
    None,
    True,
    "",
    "ten",
    "ünïcode",
    [],
    {},
    [1, 2],
    {"a": 1},
    0,
    -1,
    -0.5,
    0.5,
    1e30,
    10**18,
    float("nan"),
    "../..",
)
VERDICTS = ("error", "valid", "unclear")


def leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all values and sections of a tree, the root's left out.

    >>> leaves({"a": {"b": 1}, "c": 2})
    [('a',), ('a', 'b'), ('c',)]
    """
    if not isinstance(tree, dict):
        return []
    return [found for name, child in tree.items() for found in ((*path, name), *leaves(child, (*path, name)))]


def mutations(tree: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """`count` trees with one thing wrong, each with what was done to it."""
    chance = random.Random(seed)
    for _ in range(count):
        mutated = copy.deepcopy(tree)
        path, other = chance.choice(leaves(mutated)), chance.choice(leaves(mutated))
        holder, name = _holder(mutated, path), path[-1]
        what = chance.choice(["strange", "strange", "strange", "gone", "renamed", "swapped", "moved"])
        if what == "gone":
            del holder[name]
        elif what == "renamed":
            wrong = chance.choice([name[:-1], name + "s", name.upper(), name.replace("_", "-") + "_"])
            holder[wrong] = holder.pop(name)
        elif what == "swapped" and path != other[: len(path)] and other != path[: len(other)]:
            theirs = _holder(mutated, other)
            holder[name], theirs[other[-1]] = theirs[other[-1]], holder[name]
        elif what == "moved":
            mutated[name + "_"] = holder.pop(name)
        else:
            what = f"strange, {(strange := chance.choice(STRANGE))!r}"
            holder[name] = strange
        yield f"{'.'.join(path)}: {what}", mutated


def _holder(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path[:-1]:
        tree = tree[name]
    return tree


def judge(tree: dict[str, Any], folder: Path, server: ForkServer) -> tuple[str, str]:
    """Train one step with it; the verdict, and what was said if that is not clear."""
    configuration = folder / "mutated.yaml"
    configuration.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    arguments = ["train", "--config", str(configuration), "train.max_steps=1", f"run.directory={folder / 'mutated'}"]
    try:
        status = server.run(1, arguments, seconds=SECONDS, memory=8 << 30)[0]
    except Hung as hung:
        return "unclear", str(hung)
    said = server.said(0)
    if status == 0:
        return "valid", ""
    is_clear = status == 2 and said.count("rankmixer: error:") == 1 and "Traceback" not in said
    return ("error", "") if is_clear else ("unclear", f"status {status}: {said[-1500:]}")
