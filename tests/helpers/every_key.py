"""For each key of the configuration, and each kind that it is a key of, what shows that it is not ignored.

Left are pairs of keys with the choice that they are taken with in brackets. test_every_key.py compares them with
the configuration's own model: a new key, or a new kind, has no entry here and fails it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["weights", "log", "files", "meta"]


@dataclass(frozen=True)
class Changes:
    """A run with `overrides` beside `base` differs from that with `base` alone in `part`."""

    overrides: tuple[str, ...]
    base: tuple[str, ...] = ()
    part: Part = "weights"


@dataclass(frozen=True)
class Refused:
    """A run with `overrides` is refused by a message that holds every word of `words`."""

    overrides: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Exempt:
    """It may not differ, for a `reason`. With `overrides` that is tested, so that no exemption outlives it."""

    reason: str
    overrides: tuple[str, ...] = ()
    base: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elsewhere:
    """Its effect takes a job of its own: that of the test `file`."""

    file: str


Case = Changes | Refused | Exempt | Elsewhere
ENTRIES: dict[str, Case] = {}


def changes(*overrides: str, base: str | tuple[str, ...] = (), part: Part = "weights") -> Case:
    return Changes(overrides, (base,) if isinstance(base, str) else base, part)


def refused(*overrides: str, words: str) -> Case:
    return Refused(overrides, tuple(words.split("; ")))


# --- optimizer

OTHER = {"rowwise_adagrad": "sgd", "adagrad": "rowwise_adagrad", "sgd": "adagrad"}
for kind, other in OTHER.items():
    key, is_kind = "optimizer.sparse", f"optimizer.sparse.kind={kind}"
    ENTRIES[f"{key}.kind[{kind}]"] = changes(is_kind, base=f"{key}.kind={other}")
    ENTRIES[f"{key}.lr[{kind}]"] = changes(f"{key}.lr=0.5", base=is_kind)
    ENTRIES[f"{key}.eps[{kind}]"] = (
        changes(f"{key}.eps=0.1", base=is_kind)
        if kind != "sgd"
        else refused(is_kind, f"{key}.eps=0.1", words=f"{key}.eps is 0.1; {key}.kind is sgd; remove it")
    )
    ENTRIES[f"{key}.weight_decay[{kind}]"] = refused(
        is_kind, f"{key}.weight_decay=0.1", words=f"{key}.weight_decay is 0.1; {key}.kind is {kind}; remove it"
    )
for name in ("kind=adam", "lr=0.5", "eps=0.1", "weight_decay=0.1"):
    ENTRIES[f"optimizer.sparse.{name.split('=')[0]}[adam]"] = refused(
        "optimizer.sparse.kind=adam", f"optimizer.sparse.{name}", words="optimizer.sparse.kind is adam; CUDA only"
    )
for kind, other in {"adamw": "rmsprop", "rmsprop": "adagrad", "adagrad": "muon", "muon": "adamw"}.items():
    key, is_kind = "optimizer.dense", f"optimizer.dense.kind={kind}"
    ENTRIES[f"{key}.kind[{kind}]"] = changes(is_kind, base=f"{key}.kind={other}")
    ENTRIES[f"{key}.lr[{kind}]"] = changes(f"{key}.lr=0.1", base=is_kind)
    ENTRIES[f"{key}.weight_decay[{kind}]"] = changes(f"{key}.weight_decay=0.5", base=is_kind)
for decay, other in {"none": "linear", "linear": "cosine", "cosine": "none"}.items():
    key, is_decay = "optimizer.schedule", f"optimizer.schedule.decay={decay}"
    ENTRIES[f"{key}.decay[{decay}]"] = changes(is_decay, base=f"{key}.decay={other}")
    ENTRIES[f"{key}.warmup_steps[{decay}]"] = changes(f"{key}.warmup_steps=2", base=is_decay)
    ENTRIES[f"{key}.final[{decay}]"] = (
        changes(f"{key}.final=0.5", base=is_decay)
        if decay != "none"
        else refused(is_decay, f"{key}.final=0.5", words=f"{key}.final is 0.5; {key}.decay is none; use linear")
    )
ENTRIES["optimizer.clip_norm"] = changes("optimizer.clip_norm=0.001")

# --- model

OF_OURS = {
    "preset": "small",
    "tokens": "4",
    "width": "16",
    "layers": "2",
    "expansion": "2",
    "tokenizer": "per_group",
    "global_token": "true",
    "head_hidden": "[8]",
    "mixing_gain": "true",
    "initialisation": "xavier",
    "recompute": "true",
    "moe": "{experts: 2}",
    "ablation": "no_skip",
}
SIZES = {"tokens": "2", "width": "8", "layers": "1", "expansion": "1"}
OURS, LARGE = "model.arch=rankmixer", "model.arch=tokenmixer_large"
THEIRS = {"dlrm": "dcn", "dcn": "deepfm", "deepfm": "mlp", "mlp": "dlrm"}
NOTHING_ELSE = {
    "precision": changes("model.precision=bf16"),
    "tf32": Exempt("products on CUDA", ("model.tf32=false",)),
    "compile": Exempt("the same numbers, sooner; up to rounding"),
}
for arch, is_arch in (("rankmixer", OURS), ("tokenmixer_large", LARGE)):
    ENTRIES[f"model.arch[{arch}]"] = changes(is_arch, base=LARGE if arch == "rankmixer" else OURS)
    for name, value in OF_OURS.items():
        ENTRIES[f"model.{name}[{arch}]"] = changes(f"model.{name}={value}", base=is_arch)
    # The preset says what the sizes are unless they are given.
    ENTRIES[f"model.preset[{arch}]"] = changes(
        "model.preset=small", base=(is_arch, "model.tokens=null", "model.width=16")
    )
    # Three groups of features make three tokens; without a global token one more than it leaves.
    tokens = ("model.width=12", "model.tokens=3", "model.global_token=false")
    ENTRIES[f"model.tokenizer[{arch}]"] = changes("model.tokenizer=per_group", base=(is_arch, *tokens))
    ENTRIES[f"model.recompute[{arch}]"] = Exempt("memory for time", ("model.recompute=true",), (is_arch,))
    for name, value in {"hidden": "[8]", "cross_layers": "2", "cross_rank": "2"}.items():
        ENTRIES[f"model.{name}[{arch}]"] = refused(
            is_arch, f"model.{name}={value}", words=f"model.{name} is; model.arch is {arch}; remove it"
        )
    for name, case in NOTHING_ELSE.items():
        ENTRIES[f"model.{name}[{arch}]"] = case
ENTRIES["model.global_token[tokenmixer_large]"] = changes("model.global_token=false", base=LARGE)
for name in ("moe", "mixing_gain", "ablation"):
    ENTRIES[f"model.{name}[tokenmixer_large]"] = refused(
        LARGE, f"model.{name}={OF_OURS[name]}", words=f"arch = tokenmixer_large; {name}; contradict each other"
    )
for arch, other in THEIRS.items():
    # TorchRec's models have none of the sizes that the other runs give.
    bare = f"model={{arch: {arch}, hidden: [8]}}"
    ENTRIES[f"model.arch[{arch}]"] = changes(bare, base=f"model={{arch: {other}, hidden: [8]}}")
    for name, value in OF_OURS.items():
        ENTRIES[f"model.{name}[{arch}]"] = refused(
            bare, f"model.{name}={value}", words=f"{name}; arch is {arch}; RankMixer"
        )
    ENTRIES[f"model.hidden[{arch}]"] = changes("model.hidden=[4]", base=bare)
    for name in ("cross_layers", "cross_rank"):
        ENTRIES[f"model.{name}[{arch}]"] = (
            changes(f"model.{name}=2", base=bare)
            if arch == "dcn"
            else refused(bare, f"model.{name}=2", words=f"model.{name} is 2; model.arch is {arch}; use model.arch dcn")
        )
    ENTRIES[f"model.precision[{arch}]"] = changes("model.precision=bf16", base=bare)
    ENTRIES[f"model.tf32[{arch}]"] = Exempt("products on CUDA", ("model.tf32=false",), (bare,))
    ENTRIES[f"model.compile[{arch}]"] = NOTHING_ELSE["compile"]
for routing, other in {
    "dtsi": "single",
    "dtsi_split": "dtsi",
    "dtsi_distill": "dtsi",
    "single": "top_k",
    "top_k": "dtsi",
}.items():
    key, moe = "model.moe", f"model.moe={{experts: 4, active_ratio: 0.5, routing: {routing}}}"
    evaluated = (moe, "data.evaluate=FOLDER/test")
    ENTRIES[f"{key}.routing[{routing}]"] = changes(f"{key}.routing={routing}", base=moe.replace(routing, other))
    ENTRIES[f"{key}.experts[{routing}]"] = changes(f"{key}.experts=2", base=moe)
    ENTRIES[f"{key}.active_ratio[{routing}]"] = changes(f"{key}.active_ratio=0.25", base=moe)
    ENTRIES[f"{key}.dense_above[{routing}]"] = Exempt("the same sum, by another way")

# --- plan, parallel

ENTRIES |= {
    "plan.tables.*.sharding": Exempt("where a table lies", ("plan.tables.user.sharding=row_wise",)),
    "plan.tables.*.kernel": refused(
        "plan.tables.user.kernel=fused_uvm", words="plan.tables.user.kernel is fused_uvm; CUDA only; use fused"
    ),
    "plan.tables.*.dtype": changes("plan.tables.user.dtype=fp16"),
    "plan.hbm_gb": Exempt("a bound on memory that a CPU has not", ("plan.hbm_gb=1",)),
    "plan.ddr_gb": refused("plan.ddr_gb=1e-9", words="no sharding plan fits; plan.ddr_gb"),
    "plan.init_scale": changes("plan.init_scale=0.5"),
    "parallel.token_group": refused("parallel.token_group=2", words="parallel.token_group is 2; number of ranks, 1"),
    "parallel.exchange": refused(
        "parallel.exchange=bf16", words="parallel.exchange is bf16; parallel.token_group is 1; remove it"
    ),
}

# --- train, metrics, run, data

TEST = "data.evaluate=FOLDER/test"
EACH_STEP = (TEST, "train.evaluate_every=1", "train.max_steps=null", "data.test=FOLDER/test")
STILL = ("optimizer.dense.lr=1e-30", "optimizer.sparse.lr=1e-30", "train.early_stopping.patience=1")
SAMPLED = "data.sample.keep=0.5"
ENTRIES |= {
    "train.epochs": changes("train.epochs=2", base="train.max_steps=null"),
    "train.max_steps": changes("train.max_steps=2"),
    "train.evaluate_every": changes("train.evaluate_every=1", base=TEST, part="log"),
    "train.checkpoint_every": changes("train.checkpoint_every=1", part="files"),
    "train.early_stopping.patience": changes("train.early_stopping.patience=3", base=(*EACH_STEP, *STILL), part="log"),
    "train.on_divergence": Elsewhere("tests/integration/test_rollback.py"),
    "train.seed": changes("train.seed=1"),
    "train.log_seconds": Exempt("progress on stderr alone", ("train.log_seconds=0",)),
    "train.log_steps": changes("train.log_steps=2", part="log"),
    "train.peak_tflops": changes("train.peak_tflops=2", part="log"),
    "train.profile.steps": changes("train.profile.steps=[1, 3]", base="train.profile.steps=[2, 2]", part="files"),
    "train.profile.ranks": changes("train.profile.ranks=[1]", base="train.profile.steps=[2, 2]", part="files"),
    "metrics.group": changes("metrics.group=user", base=TEST, part="log"),
    "metrics.auc_bins": changes("metrics.auc_bins=2", base=TEST, part="log"),
    "metrics.slices": changes("metrics.slices=[city]", base=TEST, part="log"),
    "metrics.select": changes("metrics.select=ne", base=TEST, part="meta"),
    "run.directory": changes("run.directory=FOLDER/another", part="files"),
    "run.checkpoints": changes("run.checkpoints=FOLDER/checkpoints", part="files"),
    "run.keep": changes("run.keep=1", base="train.checkpoint_every=1", part="files"),
    "run.resume": Elsewhere("tests/integration/test_training.py"),
    "run.warm_start": Elsewhere("tests/launch/warm_start/test_warm_start.py"),
    "run.timeout_seconds": Exempt("a limit", ("run.timeout_seconds=50",)),
    "data.train": changes("data.train=FOLDER/test"),
    "data.evaluate": changes(TEST, part="log"),
    "data.test": changes("data.test=FOLDER/test", part="log"),
    "data.batch_size": changes("data.batch_size=4"),
    "data.evaluate_batch_size": Exempt("how many rows at once; the same sums, up to rounding"),
    "data.window_rows": changes("data.window_rows=32"),
    "data.threads": Exempt("how many at once", ("data.threads=1",)),
    "data.stream.poll_seconds": Elsewhere("tests/integration/test_stream.py"),
    "data.stream.idle_seconds": Elsewhere("tests/integration/test_stream.py"),
    "data.sample.keep": changes("data.sample.keep=0.25", base=SAMPLED),
    "data.sample.negatives_of": changes("data.sample.negatives_of=click", base=SAMPLED),
    "data.on_bad_file": Elsewhere("tests/integration/test_bad_files.py"),
    "data.timeout_seconds": Exempt("a limit", ("data.timeout_seconds=50",)),
    "data.manifests": Elsewhere("tests/pipeline/files/test_manifest.py"),
}
