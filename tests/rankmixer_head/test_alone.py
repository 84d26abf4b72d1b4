"""rankmixer_head is a part: it needs torch and jaxtyping, nothing else."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = """
import sys, warnings
blocked = "numpy beartype torchrec fbgemm_gpu pyarrow pydantic yaml pipeline embeddings launch"
sys.modules.update(dict.fromkeys(blocked.split()))  # importing any of them now raises
warnings.simplefilter("ignore")  # torch mentions that it found no numpy
import torch
from rankmixer_head import RankMixer, RankMixerConfig
model = RankMixer(RankMixerConfig.preset("tiny"), [20, 5], num_tasks=2)
model(torch.randn(3, 25)).sum().backward()
print(sum(p.grad.isfinite().all().item() for p in model.parameters()) == len(list(model.parameters())))
"""


def test_runs_with_torch_and_jaxtyping_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr


@pytest.mark.skipif(find_spec("beartype") is None, reason="annotations are checked by beartype")
def test_annotations_are_checked_in_tests() -> None:
    import torch
    from jaxtyping import TypeCheckError

    from rankmixer_head import RankMixerBlock, RankMixerConfig

    with pytest.raises(TypeCheckError):
        RankMixerBlock(RankMixerConfig(tokens=4, width=12, layers=1, expansion=2))(torch.zeros(4, 12))
