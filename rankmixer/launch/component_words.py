"""What the words of a TorchX component mean: `--env`, `--mounts`, `-j`, `--name`, and `$` in any of them.

TorchX 0.7 decodes `Dict[str, str]` itself and loses `=`: `A==b` becomes `A=b`. Slurm's scheduler hands variables to
`srun --export`, which cuts them at commas. So `--env` is read here and set by `env` in front of the command: nothing
between changes a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torchx import specs
from torchx.components.dist import parse_nnodes

MACRO = r"\{(?:img_root|base_img_root|app_id|replica_id|rank0_env)\}"
# On Kubernetes a host is called rankmixer-predict-ID-NAME-0-0, ID of 14 characters, and that may have 63.
NAME_LENGTH = 24


def environment(text: str | None) -> dict[str, str]:
    """The variables of `--env A=1,B=2`, every value to the letter.

    A comma or semicolon ends a value where NAME= follows; `''` and `""` are empty values, as TorchX reads them.

    Raises:
        ValueError: not NAME=VALUE, no name of a variable, or the same one twice.

    >>> environment("NCCL_SOCKET_IFNAME==eth0,eth1, A=x=y z,B=")
    {'NCCL_SOCKET_IFNAME': '=eth0,eth1', 'A': 'x=y z', 'B': ''}
    """
    variables: dict[str, str] = {}
    for word in re.split(r"[,;]\s*(?=[^\s,;=]+=|\Z)", text.strip()) if text and text.strip() else []:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"--env is {text!r}: found {word!r}; expected NAME=VALUE, e.g. A=1,B=2")
        if name in variables:
            raise ValueError(f"--env is {text!r}: {name} is given twice; leave one out")
        variables[name] = "" if value in ("''", '""') else value
    return variables


def check_given_once(words: Sequence[str]) -> None:
    """Refuse a second `--env` or `--mounts` of `torchx run`, of which TorchX would drop the first without a word.

    Args:
        words: sys.argv; of another program's nothing is known.

    Raises:
        ValueError: names the option, and how several values are given.
    """
    if not words or Path(words[0]).name != "torchx":
        return
    own = words[: words.index("--")] if "--" in words else words
    for option, example in (("env", "A=1,B=2"), ("mounts", "type=bind,src=/a,dst=/b,type=bind,src=/c,dst=/d")):
        given = [word for word in own if word.partition("=")[0] in (f"--{option}", f"-{option}")]
        if len(given) > 1:
            raise ValueError(f"--{option} is given {len(given)} times; TorchX takes one, as --{option} {example}")


def mounts_of(words: list[str] | None) -> list[specs.BindMount | specs.VolumeMount | specs.DeviceMount]:
    """The mounts of `--mounts`.

    Raises:
        ValueError: not as TorchX writes them; says how.
    """
    try:
        return list(specs.parse_mounts(words)) if words else []
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"--mounts is {','.join(words or [])!r}: {error.args[0]!s}; expected e.g. type=bind,src=/host,dst=/job"
        ) from None


def shape(j: str) -> tuple[int, int, int, str]:
    """The least and the most nodes, processes on each, and the nodes as torchrun takes them, of `-j`.

    Raises:
        ValueError: not NODESxPROCESSES.

    >>> shape("1:2x8")
    (1, 2, 8, '1:2')
    """
    if not re.fullmatch(r"([1-9]\d*(:[1-9]\d*)?x)?[1-9]\d*", j):
        raise ValueError(f"-j is {j!r}; expected NODESxPROCESSES, e.g. 2x8")
    least, nodes, processes, words = parse_nnodes(j)
    if nodes < least:
        raise ValueError(f"-j is {j!r}: from {least} to {nodes} nodes; expected the smaller number first")
    return least, nodes, processes, words


def job_name(name: str, command: str, run: str) -> str:
    """What schedulers call the job: `--name`, or else the command and the last part of run.directory.

    Raises:
        ValueError: a name that some scheduler would not take.

    >>> job_name("", "train", "runs/ml_100k/")
    'train-ml-100k'
    """
    if not name:
        last = re.split(r"[/\\]", run.rstrip("/\\"))[-1]
        return re.sub(r"[^a-z0-9]+", "-", f"{command}-{last}".lower())[:NAME_LENGTH].strip("-")
    if len(name) > NAME_LENGTH or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise ValueError(
            f"--name is {name!r}; expected a letter and up to {NAME_LENGTH - 1} of a-z, 0-9 and - after it"
        )
    return name


def literal(text: str) -> str:
    """The text as TorchX leaves it when it fills in its macros, which stay macros; every other `$` stays a `$`.

    >>> literal("a$$b ${app_id}")
    'a$$$$b ${app_id}'
    """
    return re.sub(rf"\$(?!{MACRO})", "$$", text)
