"""How fast is the head on a GPU, and does a whole run work there?"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from rankmixer.launch.model.peak import peak_flops
from rankmixer.pipeline.journal.journal import read_log
from rankmixer_head import RankMixer, RankMixerConfig

PRESETS = {"small": 8192, "100m": 4096, "1b": 1024}  # and the batch
IN_WIDTH = 1024
ROWS = 400_000
Row = dict[str, Any]


def pipeline(overrides: list[str], on_cpu: list[str], rows: int = ROWS) -> Row:
    """`rankmixer train` on rows of a known truth, on the GPU and on the CPU, each in a process of its own.

    Initial values are drawn where the model is, and a GPU computes in bfloat16: the AUCs are near, not equal.

    Args:
        overrides: of the run on the GPU.
        on_cpu: of the run on the CPU.
        rows: of all parts.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        _run("data", "synthetic", "--out", str(data), "--rows", str(rows))
        ceiling = json.loads((data / "truth.json").read_text())["test"]["auc"]
        auc, steps = _train(data, Path(folder, "gpu"), overrides)
        cpu_auc, _ = _train(data, Path(folder, "cpu"), on_cpu, {"CUDA_VISIBLE_DEVICES": ""})
    last = steps[len(steps) // 2 :]
    return {
        "AUC": auc,
        "below the ceiling": ceiling - auc,
        "away from the CPU": abs(cpu_auc - auc),
        "examples/s": statistics.median(event["examples_per_second"] for event in last),
        "waiting for data": statistics.mean(event["data_wait_share"] for event in last),
        "within": {"below the ceiling": 0.2, "away from the CPU": 0.02},
    }


def _train(
    data: Path, directory: Path, overrides: list[str], environment: Mapping[str, str] | None = None
) -> tuple[float, list[Row]]:
    """AUC on the test rows, and what the log says of the steps."""
    config = {
        "feature_schema": str(data / "schema.yaml"),
        "data": {"train": str(data / "train"), "evaluate": str(data / "validation"), "test": str(data / "test")},
        "optimizer": {"sparse": {"kind": "adagrad"}},
        "train": {"log_steps": 5},
        "run": {"directory": str(directory)},
    }
    file = directory.with_suffix(".yaml")
    file.write_text(json.dumps(config))  # JSON is YAML
    result = json.loads(_run("train", "--config", str(file), *overrides, environment=environment).splitlines()[-1])
    return result["test_auc"], [event for event in read_log(directory) if event["kind"] == "train"]


def _run(*words: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rankmixer", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"rankmixer {words[0]} ended with status {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout


def utilisation(preset: str, device: torch.device, batch: int | None = None, repeats: int = 10) -> Row:
    """MFU of training steps of the head alone, eager and compiled: forward, loss, backward, without the optimizer."""
    torch.compiler.reset()
    batch = batch or PRESETS[preset]
    model = RankMixer(RankMixerConfig.preset(preset), [IN_WIDTH], num_tasks=1, device=device)
    peak = peak_flops(device)
    flops = model.training_flops_per_example() * batch
    eager = _step_seconds(model, device, batch, repeats)
    fused = _step_seconds(cast(nn.Module, torch.compile(model)), device, batch, repeats)
    return {
        "B": batch,
        "eager, ms": eager * 1e3,
        "compiled, ms": fused * 1e3,
        "examples/s": batch / min(eager, fused),
        "TFLOP/s": flops / min(eager, fused) / 1e12,
        "peak, TFLOP/s": peak / 1e12,
        "MFU eager": flops / eager / peak,
        "MFU": flops / min(eager, fused) / peak,
    }


def _step_seconds(model: nn.Module, device: torch.device, batch: int, repeats: int) -> float:
    x_BI = torch.randn(batch, IN_WIDTH, device=device, requires_grad=True)
    labels_BK = torch.zeros(batch, 1, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits_BK = model(x_BI)
        F.binary_cross_entropy_with_logits(logits_BK, labels_BK).backward()
        model.zero_grad(set_to_none=True)
        x_BI.grad = None

    return mean_seconds(step, device, repeats)


def mean_seconds(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Mean of calls in a row, as a training loop makes them; the device is waited for before and after only."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - start) / repeats
