"""The check of the trio, with invented metadata."""

import platform
import subprocess
import sys
from importlib import metadata

import pytest

from rankmixer.launch.ranks.versions import VersionError, check_trio, versions


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that exactly these distributions are installed."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "version", version)


def test_what_is_installed_here_fits() -> None:
    check_trio()


@pytest.mark.parametrize(
    "trio",
    [
        {"torch": "2.13.0+cpu", "fbgemm_gpu_cpu": "1.8.0", "torchrec": "1.8.0"},
        {"torch": "2.13.1", "fbgemm_gpu": "1.8.0+cu130", "torchrec": "1.8.0"},
        {"torch": "2.14.0", "fbgemm_gpu": "1.9.0", "torchrec": "1.9.2"},
        {"torch": "2.9.1", "fbgemm_gpu": "1.4.2", "torchrec": "1.4.0a0+abc"},
    ],
)
def test_a_fitting_trio_passes(monkeypatch: pytest.MonkeyPatch, trio: dict[str, str]) -> None:
    install(monkeypatch, **trio)
    check_trio()


@pytest.mark.parametrize(
    ("trio", "message"),
    [
        (
            {"torch": "2.13.0", "fbgemm_gpu_cpu": "1.9.0", "torchrec": "1.8.0"},
            "found torch 2.13.0, fbgemm-gpu-cpu 1.9.0, torchrec 1.8.0, but torch 2.13 needs fbgemm and torchrec 1.8; "
            "run: pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0",
        ),
        (
            {"torch": "2.13.0", "fbgemm_gpu": "1.8.0", "torchrec": "1.9.2"},
            "found torch 2.13.0, fbgemm-gpu 1.8.0, torchrec 1.9.2, but torch 2.13 needs fbgemm and torchrec 1.8; "
            "run: pip install --no-deps fbgemm-gpu==1.8.0 torchrec==1.8.0",
        ),
        (
            {"torch": "2.14.0", "fbgemm_gpu": "1.8.0", "torchrec": "1.8.0"},
            "found torch 2.14.0, fbgemm-gpu 1.8.0, torchrec 1.8.0, but torch 2.14 needs fbgemm and torchrec 1.9; "
            "run: pip install --no-deps fbgemm-gpu==1.9.0 torchrec==1.9.0",
        ),
        (
            {"torch": "2.13.0"},
            "found torch 2.13.0, fbgemm-gpu missing, torchrec missing, but torch 2.13 needs fbgemm and torchrec 1.8; "
            "run: pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0 (or fbgemm-gpu==1.8.0 for CUDA)",
        ),
        (
            {"torch": "2.13.0", "fbgemm_gpu": "1.8.0", "fbgemm_gpu_cpu": "1.8.0", "torchrec": "1.8.0"},
            "both fbgemm-gpu-cpu and fbgemm-gpu are installed, into one folder, and overwrite each other; "
            "run: pip uninstall -y fbgemm-gpu-cpu fbgemm-gpu && "
            "pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0 (or fbgemm-gpu==1.8.0 for CUDA)",
        ),
        (
            {"torch": "2.20.0", "fbgemm_gpu": "2.0.0", "torchrec": "2.0.0"},
            "found torch 2.20.0, fbgemm-gpu 2.0.0, torchrec 2.0.0, but no fbgemm and torchrec are known to fit torch "
            "2.20; rankmixer is tested with torch 2.13; run: pip install 'torch==2.13.*' && "
            "pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0 (or fbgemm-gpu==1.8.0 for CUDA)",
        ),
        (
            {},
            "torch is not installed; run: pip install 'torch==2.13.*', then "
            "pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0 (or fbgemm-gpu==1.8.0 for CUDA)",
        ),
    ],
)
def test_another_trio_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, trio: dict[str, str], message: str
) -> None:
    install(monkeypatch, **trio)
    with pytest.raises(VersionError) as error:
        check_trio()
    assert str(error.value) == message
    assert "\n" not in message


def test_the_record_holds_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, torch="2.13.0", fbgemm_gpu="1.8.0", pytest="9")
    assert versions() == {"python": platform.python_version(), "torch": "2.13.0", "fbgemm-gpu": "1.8.0"}


def test_the_check_imports_nothing_heavy() -> None:
    code = "import sys; from rankmixer.launch.ranks.versions import check_trio; check_trio(); "
    code += "assert not {'torch', 'torchrec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
