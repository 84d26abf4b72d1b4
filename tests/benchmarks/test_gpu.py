"""The checks of a GPU, run against the CPU itself: they must find nothing there, and find what is put in."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from benchmarks.gpu.__main__ import SHARED, checks, outcome
from benchmarks.gpu.checks import choices, compiled, grouped, half, inputs, parity, token_parallel
from benchmarks.gpu.speed import PRESETS, pipeline, utilisation
from rankmixer_head.token_group import TokenGroup

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_without_a_gpu_it_says_that_it_did_not_run() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "not run: no CUDA device\n")


def test_names_of_the_checks_are_unique() -> None:
    names = [name for name, _ in checks(CPU)]
    assert len(names) == len(set(names)) > 2 * len(choices())


@pytest.mark.parametrize("name", choices())
def test_parity_of_the_cpu_with_itself_is_exact(name: str) -> None:
    row = parity(name, CPU)
    assert (row["outputs"], row["gradients"]) == (0, 0)


def test_parity_finds_a_module_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def differs_on_the_second_device(s_TBD: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gelu(s_TBD) * (1 if len(calls) <= 4 else 1.01)  # two layers, trained and served

    gelu = torch.nn.functional.gelu
    monkeypatch.setattr("rankmixer_head.per_token_ffn.gelu", differs_on_the_second_device)
    row = outcome("parity", lambda: parity("rankmixer", CPU))
    assert row["outcome"] == "FAILED"
    assert "ffn" in row["worst"]


@pytest.mark.parametrize("name", ["rankmixer", "tokenmixer_large", "moe dtsi"])
def test_bfloat16_is_near_and_not_equal(name: str) -> None:
    row = outcome("half", lambda: half(name, CPU))
    assert row["outcome"] == "ok"
    assert row["outputs"] > 1e-4


def test_compiled_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo cannot trace the checks of annotations, which only tests have; inductor is tested elsewhere.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, backend="aot_eager", **options))
    assert outcome("compiled", lambda: compiled("rankmixer", CPU))["outcome"] == "ok"


@pytest.mark.parametrize("name", SHARED)
def test_tokens_shared_in_a_group_of_one_are_the_head(name: str) -> None:
    row = outcome("shared", lambda: token_parallel(name, CPU, compile=False))
    assert row["outcome"] == "ok", row
    # Two layers, forward and backward of training, and serving; entering and leaving with each.
    assert row["exchanges"] == 3 * (2 + 2 * (2 if name == "tokenmixer_large" else 1))


def test_tokens_shared_and_compiled_are_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, backend="aot_eager", **options))
    assert outcome("shared", lambda: token_parallel("rankmixer", CPU, compile=True))["outcome"] == "ok"


def test_an_exchange_that_goes_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = TokenGroup._swap
    monkeypatch.setattr(TokenGroup, "_swap", lambda self, x: swap(self, x).flip(0))
    assert outcome("shared", lambda: token_parallel("rankmixer", CPU, compile=False))["outcome"] == "FAILED"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the two runs differ")
def test_two_runs_of_the_pipeline_on_the_cpu_are_equal() -> None:
    row = pipeline([], [], rows=20_000)
    assert row["away from the CPU"] == 0
    assert 0 < row["below the ceiling"] < 0.4


@pytest.mark.long
@pytest.mark.slow
def test_open_experts_agree() -> None:
    assert outcome("grouped", lambda: grouped(torch.float32, CPU))["outcome"] == "ok"


def test_inputs_do_not_depend_on_what_was_drawn_before() -> None:
    first = inputs(CPU)
    torch.manual_seed(77)
    assert all(torch.equal(a, b) for a, b in zip(first, inputs(CPU), strict=True))


def test_utilisation_counts_the_products_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", 8)
    monkeypatch.setattr("benchmarks.gpu.speed.peak_flops", lambda device: 1e12)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr("benchmarks.gpu.speed.mean_seconds", lambda step, device, repeats: 2.0)
    row = utilisation("tiny", CPU)
    # tokens: 1024 x 32; FFN: 2 layers, 8 tokens, 2 maps of 32 x 128; head: 32
    assert row["TFLOP/s"] * 1e12 == pytest.approx(3 * 8 * 2 * (1024 * 32 + 2 * 8 * 2 * 32 * 128 + 32) / 2)
    assert row["MFU"] == pytest.approx(row["TFLOP/s"])
