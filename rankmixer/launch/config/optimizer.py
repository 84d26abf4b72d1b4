"""The section `optimizer` of the configuration."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat

from rankmixer.launch.config.data import NonNegativeFloat
from rankmixer.pipeline.schema.features import Strict


class DenseOptimizerConfig(Strict):
    """Optimizer of the dense part."""

    kind: Literal["adamw", "rmsprop", "adagrad", "muon"] = Field("adamw", description="muon: for per-token matrices")
    lr: PositiveFloat = Field(1e-3, description="learning rate, times the schedule's factor")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled with adamw and muon, else added to the gradient")


class SparseOptimizerConfig(Strict):
    """Optimizer fused into the tables' backward."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="rowwise_adagrad keeps one number a row; adam on CUDA only"
    )
    lr: PositiveFloat = Field(0.05, description="learning rate, times the schedule's factor")
    eps: PositiveFloat = Field(1e-8, description="added to the root in the denominator; not with sgd")
    weight_decay: NonNegativeFloat = Field(
        0.0, description="with adam alone, of the rows that a batch looks up: FBGEMM ignores it with the others"
    )


class ScheduleConfig(Strict):
    """Factor on both learning rates, tables and dense part, a function of the step alone."""

    warmup_steps: int = Field(0, ge=0, description="steps over which the factor rises evenly to 1; no step has 0")
    decay: Literal["none", "linear", "cosine"] = Field("none", description="from 1 after warm-up towards `final`")
    final: float = Field(
        0.0,
        ge=0,
        le=1,
        description="factor that the decay has reached when the last step is done: with 0, that step still learns",
    )


class OptimizerConfig(Strict):
    """How weights change."""

    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: PositiveFloat | None = Field(
        None, description="bound on the global norm of the dense gradients; tables are updated inside the backward"
    )


# `optimizer: paper` is RankMixer's own setting (arXiv 2507.15551, section 4.1).
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "paper": {"dense": {"kind": "rmsprop", "lr": 0.01}, "sparse": {"kind": "adagrad"}},
}
