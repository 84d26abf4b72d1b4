"""The configuration tree: one YAML file, any leaf overridable as `section.key=value`."""

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import nn

from rankmixer.embeddings.kinds import DTYPES, KERNELS, SHARDINGS, check_managed_plan, check_segments
from rankmixer.launch.config.data import DataConfig, NonNegativeFloat
from rankmixer.launch.config.model import ModelConfig, ParallelConfig, check_tokens, check_torchrec
from rankmixer.launch.config.optimizer import OPTIMIZERS, OptimizerConfig
from rankmixer.launch.config.unused_keys import check_all_used
from rankmixer.pipeline.base.local_path import local_path
from rankmixer.pipeline.schema.features import Strict
from rankmixer.pipeline.schema.schema import Schema, explain
from rankmixer.pipeline.schema.vocabulary import read_text


class TableConfig(Strict):
    """Constraints on one table; what is not given the planner chooses."""

    sharding: Literal[SHARDINGS] | None = Field(None, description="how it is cut")  # type: ignore[valid-type]
    kernel: Literal[KERNELS] | None = Field(None, description="CUDA only, but for fused")  # type: ignore[valid-type]
    dtype: Literal[DTYPES] = Field("fp32", description="of its weights")  # type: ignore[valid-type]


class PlanConfig(Strict):
    """Constraints on the sharding plan."""

    tables: dict[str, TableConfig] = Field(default_factory=dict, description="constraints by the table's name")
    hbm_gb: PositiveFloat | None = Field(None, description="device memory a rank may use; default: what is there")
    ddr_gb: PositiveFloat | None = Field(None, description="host memory a rank may use; default: its share of the host")
    init_scale: PositiveFloat = Field(0.01, description="tables start uniform in [-init_scale, init_scale]")


class EarlyStopping(Strict):
    """Stop when the metric has not improved for `patience` evaluations."""

    patience: PositiveInt = Field(3, description="evaluations in a row without a better metrics.select")


class ProfileConfig(Strict):
    """Traces by torch.profiler, in the run's directory."""

    steps: tuple[PositiveInt, PositiveInt] = Field(description="the first step to trace and the last, e.g. [100, 105]")
    ranks: list[NonNegativeInt] = Field([0], description="which ranks")

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int]) -> tuple[int, int]:
        if steps[0] > steps[1]:
            raise ValueError(f"expected the first step and the last, e.g. [100, 105]; the first is {steps[0]}")
        return steps


class TrainConfig(Strict):
    """The step loop."""

    epochs: PositiveInt = Field(1, description="passes over data.train")
    max_steps: PositiveInt | None = Field(None, description="stop after so many steps, whatever the epochs")
    evaluate_every: PositiveInt | None = Field(None, description="steps; None: at the end of each epoch")
    checkpoint_every: PositiveInt | None = Field(None, description="steps; None: at each evaluation")
    early_stopping: EarlyStopping | None = Field(None, description="without it all epochs are trained")
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop", description="rollback: leave out the batch after which loss or weights are not finite, 3 times at most"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of initial weights and of the order of rows")
    log_seconds: NonNegativeFloat = Field(5.0, description="seconds between progress lines when not on a terminal")
    log_steps: PositiveInt = Field(10, description="steps between records in log.jsonl and TensorBoard")
    peak_tflops: PositiveFloat | None = Field(None, description="peak for MFU; default: measured at start")
    profile: ProfileConfig | None = None


class MetricsConfig(Strict):
    """What evaluation reports."""

    group: str | None = Field(None, description="column whose values group the rows for GAUC, e.g. user_id")
    auc_bins: int | None = Field(None, ge=2, description="histogram AUC with so many bins; None: exact")
    slices: list[str] = Field(
        default_factory=list, description="columns for whose values AUC, NE and calibration are reported apart"
    )
    select: Literal["auc", "gauc", "logloss", "ne"] = Field("auc", description="metric that names the best checkpoint")


class RunConfig(Strict):
    """Where the run lives."""

    directory: str = Field("runs/default", description="folder of the run: logs, and checkpoints unless told otherwise")
    checkpoints: str | None = Field(None, description="path or fsspec URL of checkpoints; default: in the directory")
    keep: PositiveInt = Field(2, description="newest checkpoints kept, besides the best")
    resume: Literal["auto", "never"] = Field("auto", description="auto: continue from the newest checkpoint")
    warm_start: str | None = Field(
        None, description="run or checkpoint that a new run takes its first weights from, as far as they fit by name"
    )
    timeout_seconds: PositiveFloat = Field(600.0, description="limit on every collective")

    @field_validator("directory")
    @classmethod
    def _on_a_local_disk(cls, path: str) -> str:
        return local_path(path, "logs are appended to; run.checkpoints may be a URL")


class Config(Strict):
    """One run."""

    feature_schema: Schema = Field(description="the feature schema, or the path of its YAML file")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description=f"or the name of one: {', '.join(OPTIMIZERS)}")
    plan: PlanConfig = PlanConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    metrics: MetricsConfig = MetricsConfig()
    run: RunConfig = RunConfig()

    @property
    def read_seconds(self) -> float:
        """Limit on one read: by default a rank says which file stalls before the others give up waiting for it."""
        return self.data.timeout_seconds or self.run.timeout_seconds / 2

    @field_validator("feature_schema", mode="before")
    @classmethod
    def _read_schema(cls, value: Any, info: ValidationInfo) -> Any:
        return Schema.load(value, **(info.context or {})) if isinstance(value, str) else value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _named_optimizer(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in OPTIMIZERS:
            raise ValueError(f"expected a section or one of {', '.join(OPTIMIZERS)}")
        return OPTIMIZERS[value]

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        # TorchRec keeps tables in a ModuleDict, which has attributes of its own.
        taken = [name for name in self.feature_schema.tables if hasattr(nn.ModuleDict, name) or name == "training"]
        if taken:
            raise ValueError(
                f"tables {taken} of the feature schema bear names that torch.nn.ModuleDict does not take; name another "
                "`table:`, or rename the feature and give its `column:`"
            )
        if self.data.stream and self.train.epochs != 1:
            raise ValueError(
                f"train.epochs is {self.train.epochs}, but data.stream trains on each file once; leave it out"
            )
        if self.data.stream and self.train.on_divergence == "rollback":
            raise ValueError(
                "train.on_divergence is 'rollback', but a stream does not go back to earlier portions; set it to stop"
            )
        if self.data.stream and self.optimizer.schedule.decay != "none" and self.train.max_steps is None:
            raise ValueError(
                f"optimizer.schedule.decay is {self.optimizer.schedule.decay!r}, but a stream has no last step; set it "
                "to none, or set train.max_steps"
            )
        negatives_of = self.data.sample and self.data.sample.negatives_of
        if negatives_of and negatives_of not in self.feature_schema.labels:
            raise ValueError(
                f"data.sample.negatives_of is {negatives_of!r}; the schema's labels are {self.feature_schema.tasks}"
            )
        unknown = set(self.plan.tables) - set(self.feature_schema.tables)
        if unknown:
            raise ValueError(
                f"plan.tables names {sorted(unknown)}; the schema's tables are {sorted(self.feature_schema.tables)}"
            )
        for name, table in self.plan.tables.items():
            if self.feature_schema.tables[name].managed:
                check_managed_plan(name, table.sharding, table.kernel)
        if self.model.is_ours:
            check_tokens(self.model, self.feature_schema)
        else:
            check_torchrec(self.model, self.feature_schema, self.optimizer.dense.kind)
        check_all_used(self)
        return self


def load_config(path: str, overrides: Sequence[str] = (), *, vocabularies_to_be_written: bool = False) -> Config:
    """Read a configuration file and apply overrides.

    Args:
        path: YAML file; relative paths inside it are relative to the current directory.
        overrides: `section.key=value`, the value in YAML.
        vocabularies_to_be_written: do not read those that the feature schema names.

    Raises:
        ValueError: the file, the key, what was found and what was expected.
    """
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections such as data and features, found {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree, context={"vocabularies_to_be_written": vocabularies_to_be_written})
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in explain(error))) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected section.key=value, e.g. optimizer.dense.lr=0.001")
    *sections, leaf = key.split(".")
    named = tree.get("optimizer")
    if sections[:1] == ["optimizer"] and isinstance(named, str) and named in OPTIMIZERS:
        tree["optimizer"] = deepcopy(OPTIMIZERS[named])
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {section} holds a value, not a section")
    tree[leaf] = yaml.safe_load(value)


def dump_config(config: Config) -> dict[str, Any]:
    """The resolved tree as JSON: the schema inline, enough to rebuild the run."""
    return json.loads(config.model_dump_json())


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of a configuration tree by their dotted keys.

    >>> leaves({"model": {"layers": 2, "moe": None}})
    {'model.layers': 2, 'model.moe': None}
    """
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: leaf for name, child in tree.items() for key, leaf in leaves(child, f"{path}.{name}".lstrip(".")).items()
    }


def json_schema() -> str:
    """The JSON Schema of a configuration file, for editors."""
    schema = Config.model_json_schema()
    inline = schema["properties"]["feature_schema"]
    schema["properties"]["feature_schema"] = {"anyOf": [{"type": "string"}, inline]}
    optimizer = schema["properties"]["optimizer"]
    optimizer["anyOf"] = [{"enum": list(OPTIMIZERS)}, {"$ref": optimizer.pop("$ref")}]
    return json.dumps(schema, indent=2)


def token_group(config: Config, world_size: int, local_world_size: int) -> int:
    """P, how many ranks share the tokens of the head.

    Raises:
        ValueError: `parallel.token_group` fits neither the model nor the ranks; says what does.
    """
    is_muon = config.optimizer.dense.kind == "muon"
    return config.parallel.ranks_of_a_group(config.model, is_muon, world_size, local_world_size)


def check_world(config: Config, world_size: int, local_world_size: int | None = None) -> None:
    """Refuse a world size that does not fit, with the sizes that do.

    Raises:
        ValueError: a global batch size does not divide by `world_size`, the ranks into token groups, or the segments of
            managed tables among the ranks.
    """
    token_group(config, world_size, local_world_size or world_size)
    check_segments(config.feature_schema, world_size)
    for key in ("batch_size", "evaluate_batch_size"):
        size = getattr(config.data, key)
        if size % world_size:
            below, above = size // world_size * world_size, (size // world_size + 1) * world_size
            near = f"{above}" if below == 0 else f"{below} or {above}"
            fits = [ranks for ranks in range(1, min(size, 64) + 1) if size % ranks == 0]
            raise ValueError(
                f"data.{key} is {size}, which {world_size} ranks do not divide; use {near}, or one of {fits} ranks"
            )
