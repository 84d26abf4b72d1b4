import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.token_parallel.__main__ import time_rows


@pytest.mark.long
@pytest.mark.slow
def test_counts_are_those_of_the_formula() -> None:
    options = ["--preset", "tiny", "--ranks", "1", "2", "--batches", "2", "4", "--runs", "1", "--measurements", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.token_parallel", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["collectives_forward_minus_L"] == 2
    assert result["memory_ratio_p2"] == pytest.approx(1 / 2, rel=0.02)
    T, P = 8, 2
    for L in (2, 8):
        assert result[f"bytes_ratio_formula_p2_L{L}"] == 1
        assert result[f"bytes_ratio_dispatch_L{L}"] == pytest.approx((L + 1 + P / T) / (2 * L), rel=1e-3)
    assert {"step_time_ratio_ddp_b2", "step_time_ratio_ddp_b4"} <= result.keys()
    assert len([key for key in result if key.startswith("crossover_batch")]) == 1


def test_a_step_is_split_and_compared_run_by_run() -> None:
    seconds = {
        str(B): {
            "DDP step": [5.0, 4.0],
            "DDP compute": [1.0, 1.0],
            "DDP optimizer": [2.0, 2.5],
            "tokens step": [2.5 * B, 3.0 * B],
            "tokens compute": [1.0, 1.5],
            "tokens optimizer": [1.0, 0.5],
        }
        for B in (1, 2)
    }
    rows, result = time_rows(seconds, [1, 2])
    assert [rows[0][f"DDP: {part}"] for part in ("step", "compute", "communication", "optimizer")] == [
        4000,
        1000,
        1000,
        2000,
    ]
    assert result["step_time_ratio_ddp_b1"].low == 0.5
    assert result["step_time_ratio_ddp_b1"].high == 0.75
    assert result["crossover_batch"] == 1.6  # 2.5 B = 4
