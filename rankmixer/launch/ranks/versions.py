"""Check that torch, fbgemm and torchrec fit together, before torchrec is imported and fails far from the cause."""

import platform
import re
from importlib import metadata

# torch minor -> minor of fbgemm and torchrec (FBGEMM's own table in fbgemm_gpu/__init__.py).
PAIRS = {"2.9": "1.4", "2.10": "1.5", "2.11": "1.6", "2.12": "1.7", "2.13": "1.8", "2.14": "1.9"}
TESTED_TORCH = "2.13"
FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
RECORDED = ("rankmixer", "torch", *FBGEMM, "torchrec", "torchx", "pyarrow", "numpy", "safetensors")


class VersionError(ValueError):
    """torch, fbgemm and torchrec are missing or do not fit together."""


def check_trio() -> None:
    """Read the installed versions of torch, fbgemm and torchrec; imports none of them.

    Raises:
        VersionError: one sentence that says what was found, what fits, and the command that mends it.
    """
    torch = _installed("torch")
    if torch is None:
        raise VersionError(
            f"torch is not installed; run: pip install 'torch=={TESTED_TORCH}.*', then {_repair(TESTED_TORCH)}"
        )
    fbgemms = {name: version for name in FBGEMM if (version := _installed(name)) is not None}
    if len(fbgemms) > 1:
        raise VersionError(
            f"both {' and '.join(fbgemms)} are installed, into one folder, and overwrite each other; "
            f"run: pip uninstall -y {' '.join(fbgemms)} && {_repair(_minor(torch))}"
        )
    torchrec = _installed("torchrec")
    fbgemm_name, fbgemm = next(iter(fbgemms.items()), ("fbgemm-gpu", None))
    found = f"torch {torch}, {fbgemm_name} {fbgemm or 'missing'}, torchrec {torchrec or 'missing'}"
    minor = _minor(torch)
    if minor not in PAIRS:
        raise VersionError(
            f"found {found}, but no fbgemm and torchrec are known to fit torch {minor}; rankmixer is tested with torch "
            f"{TESTED_TORCH}; run: pip install 'torch=={TESTED_TORCH}.*' && {_repair(TESTED_TORCH)}"
        )
    if fbgemm is None or torchrec is None or {_minor(fbgemm), _minor(torchrec)} != {PAIRS[minor]}:
        name = fbgemm_name if fbgemm else None
        raise VersionError(
            f"found {found}, but torch {minor} needs fbgemm and torchrec {PAIRS[minor]}; run: {_repair(minor, name)}"
        )


def versions() -> dict[str, str]:
    """Versions to record beside a result: Python's, and those of the packages that can change a number."""
    found = {name: version for name in RECORDED if (version := _installed(name)) is not None}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    """The first two numbers of a version.

    >>> _minor("2.13.0+cpu"), _minor("1.10")
    ('2.13', '1.10')
    """
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version


def _repair(torch_minor: str, fbgemm: str | None = None) -> str:
    """The command that installs what fits a minor of torch; --no-deps, for torchrec would bring another fbgemm."""
    minor = PAIRS.get(torch_minor, PAIRS[TESTED_TORCH])
    wanted = fbgemm or FBGEMM[0]
    hint = "" if fbgemm else f" (or {FBGEMM[1]}=={minor}.0 for CUDA)"
    return f"pip install --no-deps {wanted}=={minor}.0 torchrec=={minor}.0{hint}"
