"""The configuration tree: one YAML file, any leaf overridable as `section.key=value`."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator
from torch import nn

from embeddings.kinds import DTYPES, KERNELS, SHARDINGS
from pipeline.features import Strict, read_text
from pipeline.schema import Schema, explain
from rankmixer_head.config import (
    PRESETS,
    READS_ALL_TOKENS,
    Ablation,
    BlockKind,
    Initialisation,
    MoEConfig,
    RankMixerConfig,
    Routing,
    TokenizerKind,
    check_token_group,
)

NonNegativeFloat = Annotated[float, Field(ge=0)]


class DataConfig(Strict):
    """Where the rows are and how they become batches."""

    train: str | list[str] = Field(description="Parquet files: path, glob, directory or URL, or a list of them")
    evaluate: str | list[str] | None = Field(None, description="rows for evaluation during and after training")
    test: str | list[str] | None = Field(None, description="rows read once, after training, with the best weights")
    batch_size: PositiveInt = Field(2048, description="global batch size, divided by the number of ranks")
    evaluate_batch_size: PositiveInt = Field(8192, description="global batch size of evaluation and prediction")
    window_rows: PositiveInt = Field(262_144, description="rows shuffled together; memory grows with it")
    threads: PositiveInt = Field(2, description="threads that prepare batches ahead, on each rank")


class MoESection(Strict):
    """A Sparse-MoE in place of every per-token FFN; rankmixer_head.MoEConfig explains the choices."""

    experts: PositiveInt = Field(4, description="E, experts of each token, each of the hidden width k*D")
    active_ratio: float = Field(0.25, gt=0, le=1, description="budget: share of the experts active in serving")
    routing: Routing = Field(
        "dtsi_split", description="two routers (dtsi...), one (single), or softmax top-k with balance loss"
    )
    dense_above: float = Field(0.9, ge=0, le=1, description="activity above which evaluation computes all experts")


class ModelConfig(Strict):
    """The dense part: the RankMixer head, whose sizes come from the preset unless given, or a model of torchrec's."""

    arch: Literal["rankmixer", "tokenmixer_large", "dlrm", "dcn", "deepfm", "mlp"] = Field(
        "rankmixer", description="ours, or torchrec's own for comparison; those want all tables of one dim"
    )
    preset: str = Field("tiny", description=f"one of {', '.join(PRESETS)}")
    tokens: PositiveInt | None = Field(None, description="T, tokens")
    width: PositiveInt | None = Field(None, description="D, token width; T must divide it")
    layers: PositiveInt | None = Field(None, description="L, blocks")
    expansion: PositiveFloat | None = Field(None, description="k, FFN hidden width over D")
    tokenizer: TokenizerKind = Field("slices", description="slices of equal width, or a token a group")
    global_token: bool | None = Field(
        None, description="the first token is made from the whole input; default: with tokenmixer_large"
    )
    head_hidden: list[PositiveInt] = Field([], description="hidden widths of each task's head; none: one affine map")
    moe: MoESection | None = Field(None, description="Sparse-MoE; none: dense per-token FFNs")
    mixing_gain: bool = Field(False, description="learn a gain on the mixing branch, started at 1/2")
    ablation: Ablation = Field("none", description="one thing that the paper takes away or replaces")
    initialisation: Initialisation = Field("fan_in", description="of the maps: uniform by fan-in, or Xavier")
    hidden: list[PositiveInt] = Field([256, 128], description="torchrec's models: hidden widths of their MLP")
    cross_layers: PositiveInt = Field(3, description="dcn: cross layers")
    cross_rank: PositiveInt = Field(32, description="dcn: rank of their weights")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 on CPU")
    tf32: bool = Field(True, description="TF32 matrix products on CUDA")
    compile: bool = Field(False, description="torch.compile the head")
    recompute: bool = Field(
        False, description="keep only each block's input for the backward: less memory, a third slower"
    )

    @property
    def is_ours(self) -> bool:
        """Whether the dense part is a RankMixer, and not one of torchrec's."""
        return self.arch in get_args(BlockKind)

    def head(self) -> RankMixerConfig:
        """The head's own configuration; call it for our architectures only."""
        sizes = {key: getattr(self, key) for key in ("tokens", "width", "layers", "expansion")}
        return RankMixerConfig.preset(
            self.preset,
            tokenizer=self.tokenizer,
            head_hidden=tuple(self.head_hidden),
            block=self.arch,
            global_token=self.arch == "tokenmixer_large" if self.global_token is None else self.global_token,
            moe=None if self.moe is None else MoEConfig(**self.moe.model_dump()),
            **{key: getattr(self, key) for key in ("mixing_gain", "ablation", "initialisation", "recompute")},
            **{key: value for key, value in sizes.items() if value is not None},
        )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.is_ours:
            self.head()
        elif not self.hidden:
            raise ValueError(f"hidden must hold at least one width with arch {self.arch}, found []")
        return self


class DenseOptimizerConfig(Strict):
    """Optimizer of the dense part."""

    kind: Literal["adamw", "rmsprop", "adagrad", "muon"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0


class SparseOptimizerConfig(Strict):
    """Optimizer fused into the tables' backward."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    lr: PositiveFloat = 0.05
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class ScheduleConfig(Strict):
    """Factor on both learning rates, a function of the step alone."""

    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    final: float = Field(0.0, ge=0, le=1, description="factor at the last step")


class OptimizerConfig(Strict):
    """How weights change."""

    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: PositiveFloat | None = Field(
        None, description="bound on the global norm of the dense gradients; tables are updated inside the backward"
    )


class TableConfig(Strict):
    """Constraints on one table; what is not given the planner chooses."""

    sharding: Literal[SHARDINGS] | None = None  # type: ignore[valid-type]
    kernel: Literal[KERNELS] | None = Field(None, description="CUDA only; on CPU always fused")  # type: ignore[valid-type]
    dtype: Literal[DTYPES] = "fp32"  # type: ignore[valid-type]


class PlanConfig(Strict):
    """Constraints on the sharding plan."""

    tables: dict[str, TableConfig] = Field(default_factory=dict)
    hbm_gb: PositiveFloat | None = Field(None, description="device memory a rank may use; default: what is there")
    ddr_gb: PositiveFloat | None = Field(None, description="host memory a rank may use; default: its share of the host")
    init_scale: PositiveFloat = Field(0.01, description="tables start uniform in [-init_scale, init_scale]")


class ParallelConfig(Strict):
    """How ranks share the head."""

    token_group: PositiveInt | Literal["auto"] = Field(
        1, description="ranks that share the tokens; auto: as many of a node as divide them; 1: each rank has the head"
    )
    exchange: Literal["fp32", "bf16"] = Field("fp32", description="what a token group's ranks send each other")


class EarlyStopping(Strict):
    """Stop when the metric has not improved for `patience` evaluations."""

    patience: PositiveInt = 3


class TrainConfig(Strict):
    """The step loop."""

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = Field(None, description="stop after so many steps, whatever the epochs")
    evaluate_every: PositiveInt | None = Field(None, description="steps; None: at the end of each epoch")
    checkpoint_every: PositiveInt | None = Field(None, description="steps; None: at each evaluation")
    early_stopping: EarlyStopping | None = None
    seed: int = Field(0, ge=0)
    log_seconds: NonNegativeFloat = Field(5.0, description="seconds between progress lines when not on a terminal")
    log_steps: PositiveInt = Field(10, description="steps between records in log.jsonl and TensorBoard")
    peak_tflops: PositiveFloat | None = Field(None, description="peak for MFU; default: measured at start")


class MetricsConfig(Strict):
    """What evaluation reports."""

    group: str | None = Field(None, description="column whose values group the rows for GAUC, e.g. user_id")
    auc_bins: PositiveInt | None = Field(None, description="histogram AUC with so many bins; None: exact")
    select: Literal["auc", "gauc", "logloss", "ne"] = Field("auc", description="metric that names the best checkpoint")


class RunConfig(Strict):
    """Where the run lives."""

    directory: str = Field("runs/default", description="folder of the run: logs, and checkpoints unless told otherwise")
    checkpoints: str | None = Field(None, description="path or fsspec URL of checkpoints; default: in the directory")
    keep: PositiveInt = Field(2, description="newest checkpoints kept, besides the best")
    resume: Literal["auto", "never"] = Field("auto", description="auto: continue from the newest checkpoint")
    timeout_seconds: PositiveFloat = Field(600.0, description="limit on every collective")


class Config(Strict):
    """One run."""

    feature_schema: Schema = Field(description="the feature schema, or the path of its YAML file")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    plan: PlanConfig = PlanConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    metrics: MetricsConfig = MetricsConfig()
    run: RunConfig = RunConfig()

    @field_validator("feature_schema", mode="before")
    @classmethod
    def _read_schema(cls, value: Any) -> Any:
        return Schema.load(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        # TorchRec keeps tables in a ModuleDict, which has attributes of its own.
        taken = [name for name in self.feature_schema.tables if hasattr(nn.ModuleDict, name) or name == "training"]
        if taken:
            raise ValueError(
                f"tables {taken} of the feature schema bear names that torch.nn.ModuleDict does not take; name another "
                "`table:`, or rename the feature and give its `column:`"
            )
        unknown = set(self.plan.tables) - set(self.feature_schema.tables)
        if unknown:
            raise ValueError(
                f"plan.tables names {sorted(unknown)}; the schema's tables are {sorted(self.feature_schema.tables)}"
            )
        if self.model.is_ours and self.model.tokenizer == "per_group":
            head, groups = self.model.head(), list(self.feature_schema.groups)
            if head.tokens - head.global_token != len(groups):
                raise ValueError(
                    f"model.tokens is {head.tokens}, but tokenizer per_group makes one token of each of the "
                    f"{len(groups)} feature groups {groups}{', and a global token' if head.global_token else ''}; set "
                    f"model.tokens = {len(groups) + head.global_token}, or use tokenizer slices"
                )
        if not self.model.is_ours:
            self._fits_torchrec()
        return self

    def _fits_torchrec(self) -> None:
        """Refuse what TorchRec's models cannot take, before anything is built."""
        arch, schema = self.model.arch, self.feature_schema
        if self.optimizer.dense.kind == "muon":
            raise ValueError(
                f"optimizer.dense.kind is muon, which is for per-token matrices, and model.arch = {arch} has none; use "
                "adamw, rmsprop or adagrad"
            )
        features: dict[int, list[str]] = {}
        for table in schema.tables.values():
            features.setdefault(table.dim, []).extend(table.features)
        if arch != "mlp" and len(features) > 1:
            found = "; ".join(f"dim {dim}: {', '.join(names)}" for dim, names in sorted(features.items()))
            raise ValueError(
                f"model.arch = {arch} wants all tables of one dim, found {found}; give these features one dim in the "
                "feature schema, or use model.arch mlp, rankmixer or tokenmixer_large, which take any"
            )
        if arch in ("dlrm", "dcn") and len(schema.sparse_features) + bool(schema.dense_features) < 2:
            raise ValueError(
                f"model.arch = {arch} crosses features, and the schema has only {schema.sparse_features}; add a "
                "feature, or use model.arch deepfm, mlp, rankmixer or tokenmixer_large"
            )


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply overrides.

    Args:
        path: YAML file; relative paths inside it are relative to the current directory.
        overrides: `section.key=value`, the value in YAML.

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
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in explain(error))) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected section.key=value, e.g. optimizer.dense.lr=0.001")
    *sections, leaf = key.split(".")
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


def json_schema() -> str:
    """The JSON Schema of a configuration file, for editors."""
    schema = Config.model_json_schema()
    inline = schema["properties"]["feature_schema"]
    schema["properties"]["feature_schema"] = {"anyOf": [{"type": "string"}, inline]}
    return json.dumps(schema, indent=2)


def token_group(config: Config, world_size: int, local_world_size: int) -> int:
    """P, how many ranks share the tokens of the head.

    Raises:
        ValueError: `parallel.token_group` fits neither the model nor the ranks; says what does.
    """
    asked, muon = config.parallel.token_group, config.optimizer.dense.kind == "muon"
    if not config.model.is_ours or asked == 1:
        if asked not in (1, "auto"):
            raise ValueError(
                f"parallel.token_group is {asked}, but model.arch = {config.model.arch} has no tokens; use 1"
            )
        return 1
    head = config.model.head()
    if asked == "auto":
        can_share = head.ablation not in READS_ALL_TOKENS and not muon
        return math.gcd(head.tokens, local_world_size) if can_share else 1
    try:
        check_token_group(head, asked)
    except ValueError as error:
        raise ValueError(f"parallel.token_group is {asked}: {error}") from None
    if muon:
        raise ValueError(
            f"parallel.token_group is {asked} and optimizer.dense.kind is muon, which wants whole weights; use "
            "parallel.token_group=1, or adamw"
        )
    if world_size % asked:
        fitting = [size for size in range(1, world_size + 1) if world_size % size == 0 and head.tokens % size == 0]
        raise ValueError(
            f"parallel.token_group is {asked}, into groups of which {world_size} ranks cannot be divided; use one of "
            f"{fitting}, or a multiple of {asked} ranks"
        )
    return asked


def check_world(config: Config, world_size: int, local_world_size: int | None = None) -> None:
    """Refuse a world size that does not fit, with the sizes that do.

    Raises:
        ValueError: a global batch size does not divide by `world_size`, or the ranks into token groups.
    """
    token_group(config, world_size, local_world_size or world_size)
    for key in ("batch_size", "evaluate_batch_size"):
        size = getattr(config.data, key)
        if size % world_size:
            below, above = size // world_size * world_size, (size // world_size + 1) * world_size
            near = f"{above}" if below == 0 else f"{below} or {above}"
            fits = [ranks for ranks in range(1, min(size, 64) + 1) if size % ranks == 0]
            raise ValueError(
                f"data.{key} is {size}, which {world_size} ranks do not divide; use {near}, or one of {fits} ranks"
            )
