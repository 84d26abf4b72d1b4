"""The sections `model` and `parallel` of a configuration: the dense part, and which ranks hold it."""

import math
from typing import Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rankmixer.pipeline.schema.features import Strict
from rankmixer.pipeline.schema.schema import Schema
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


class MoESection(Strict):
    """A Sparse-MoE in place of every per-token FFN; rankmixer_head.MoEConfig explains the choices."""

    experts: PositiveInt = Field(4, description="E, experts of each token, each of the hidden width k*D")
    active_ratio: float = Field(0.25, gt=0, le=1, description="budget: share of the experts active in serving")
    routing: Routing = Field(
        "dtsi", description="two routers (dtsi...), one (single), or softmax top-k with balance loss"
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
            try:
                self.head()
            except ValueError as error:  # what is `arch` here is the head's `block`
                raise ValueError(str(error).replace("block = ", "arch = ")) from None
            return self
        for key, default in (("moe", None), ("ablation", "none")):
            if getattr(self, key) != default:
                raise ValueError(
                    f"{key} changes a RankMixer, and arch is {self.arch}; leave {key} out, or use arch rankmixer"
                )
        if not self.hidden:
            raise ValueError(f"hidden must hold at least one width with arch {self.arch}, found []")
        return self


class ParallelConfig(Strict):
    """How ranks share the head."""

    token_group: PositiveInt | Literal["auto"] = Field(
        1, description="ranks that share the tokens; auto: as many of a node as divide them; 1: each rank has the head"
    )
    exchange: Literal["fp32", "bf16"] = Field("fp32", description="what a token group's ranks send each other")

    @field_validator("token_group", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        # One sentence, where pydantic would write one for each of the two types.
        if value != "auto" and not (isinstance(value, int) and value > 0):
            raise ValueError("expected auto, or a number of ranks from 1")
        return value

    def ranks_of_a_group(self, model: ModelConfig, is_muon: bool, world_size: int, local_world_size: int) -> int:
        """P, of W ranks in all.

        Raises:
            ValueError: `token_group` fits neither the model nor the ranks; says what does.
        """
        asked = self.token_group
        if not model.is_ours or asked == 1:
            if asked not in (1, "auto"):
                raise ValueError(f"parallel.token_group is {asked}, but model.arch = {model.arch} has no tokens; use 1")
            return 1
        head = model.head()
        if asked == "auto":
            can_share = head.ablation not in READS_ALL_TOKENS and not is_muon
            return math.gcd(head.tokens, local_world_size) if can_share else 1
        try:
            check_token_group(head, asked)
        except ValueError as error:
            raise ValueError(f"parallel.token_group is {asked}: {error}") from None
        if is_muon:
            raise ValueError(
                f"parallel.token_group is {asked} and optimizer.dense.kind is muon, which wants whole weights; use "
                "parallel.token_group=1, or adamw"
            )
        if world_size % asked:
            fitting = [size for size in range(1, world_size + 1) if world_size % size == 0 and head.tokens % size == 0]
            raise ValueError(
                f"parallel.token_group is {asked}, which does not divide the number of ranks, {world_size}; use one "
                f"of {fitting}, or a multiple of {asked} ranks"
            )
        return asked


def check_tokens(model: ModelConfig, schema: Schema) -> None:
    """Refuse a number of tokens that does not fit the feature groups.

    Raises:
        ValueError: tokenizer per_group with other tokens than groups.
    """
    head, groups = model.head(), list(schema.groups)
    if model.tokenizer == "per_group" and head.tokens - head.global_token != len(groups):
        raise ValueError(
            f"model.tokens is {head.tokens}, but tokenizer per_group makes one token of each of the "
            f"{len(groups)} feature groups {groups}{', and a global token' if head.global_token else ''}; set "
            f"model.tokens = {len(groups) + head.global_token}, or use tokenizer slices"
        )


def check_torchrec(model: ModelConfig, schema: Schema, dense_optimizer: str) -> None:
    """Refuse what TorchRec's models cannot take, before anything is built.

    Raises:
        ValueError: Muon, tables of several dims, or too few features to cross.
    """
    if dense_optimizer == "muon":
        raise ValueError(
            f"optimizer.dense.kind is muon, which is for per-token matrices, and model.arch = {model.arch} has none; "
            "use adamw, rmsprop or adagrad"
        )
    features: dict[int, list[str]] = {}
    for table in schema.tables.values():
        features.setdefault(table.dim, []).extend(table.features)
    if model.arch != "mlp" and len(features) > 1:
        found = "; ".join(f"dim {dim}: {', '.join(names)}" for dim, names in sorted(features.items()))
        raise ValueError(
            f"model.arch = {model.arch} wants all tables of one dim, found {found}; give these features one dim in the "
            "feature schema, or use model.arch mlp, rankmixer or tokenmixer_large, which take any"
        )
    if model.arch in ("dlrm", "dcn") and len(schema.sparse_features) + bool(schema.dense_features) < 2:
        raise ValueError(
            f"model.arch = {model.arch} crosses features, and the schema has only {schema.sparse_features}; add a "
            "feature, or use model.arch deepfm, mlp, rankmixer or tokenmixer_large"
        )
