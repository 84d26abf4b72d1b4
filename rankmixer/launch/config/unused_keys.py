"""Refuse configuration keys that would change nothing beside the others: an option that is ignored misleads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from rankmixer.launch.config.config import Config

# (whether it applies, the keys that would change nothing then, which other key makes them so and why, what to do)
Rule = tuple[bool, str, str, str]

OF_A_RANKMIXER = (
    "preset tokens width layers expansion tokenizer global_token head_hidden mixing_gain initialisation recompute"
)
OF_TORCHREC = "hidden cross_layers cross_rank"


def check_all_used(config: Config) -> None:
    """Refuse keys that another key makes meaningless.

    A key counts as given if it is not at its default: then a configuration that a checkpoint wrote, which holds every
    key, reads as the one it came from.

    Raises:
        ValueError: names the keys that would change nothing, the key because of which, and what to do.
    """
    for applies, keys, because, do in _rules(config):
        given = [f"{key} is {_shown(config, key)}" for key in keys.split() if _is_given(config, key)] if applies else []
        if given:
            it = "it" if len(given) == 1 else "them"
            raise ValueError(f"{', '.join(given)}, but {because}: that would change nothing; {do.format(it=it)}")


def _rules(config: Config) -> list[Rule]:
    model, sparse, schedule = config.model, config.optimizer.sparse, config.optimizer.schedule
    is_evaluated = config.data.evaluate is not None
    return [
        (
            sparse.kind == "sgd",
            "optimizer.sparse.eps",
            "optimizer.sparse.kind is sgd, which divides by no root",
            "remove {it}, or use rowwise_adagrad or adagrad",
        ),
        (
            # Seen by running FBGEMM 1.8 in the modes NONE, L2 and DECOUPLE.
            sparse.kind != "adam",
            "optimizer.sparse.weight_decay",
            f"optimizer.sparse.kind is {sparse.kind}, with which FBGEMM decays no weights",
            "remove {it}; only adam, on CUDA, has it",
        ),
        (
            schedule.decay == "none",
            "optimizer.schedule.final",
            "optimizer.schedule.decay is none",
            "remove {it}, or use linear or cosine",
        ),
        (
            not model.is_ours,
            _within("model", OF_A_RANKMIXER),
            f"model.arch is {model.arch}, which is no RankMixer",
            f"remove {{it}}, or override the whole section: model='{{{{arch: {model.arch}}}}}'",
        ),
        (
            model.is_ours,
            _within("model", OF_TORCHREC),
            f"model.arch is {model.arch}",
            "remove {it}: that is for torchrec's dlrm, dcn, deepfm and mlp",
        ),
        (
            model.arch != "dcn",
            _within("model", "cross_layers cross_rank"),
            f"model.arch is {model.arch}, which has no cross layers",
            "remove {it}, or use model.arch dcn",
        ),
        (
            config.parallel.token_group == 1,
            "parallel.exchange",
            "parallel.token_group is 1, so that no rank sends tokens to another",
            "remove {it}, or set parallel.token_group to auto or a number of ranks",
        ),
        (
            not model.is_ours,
            "parallel.exchange",
            f"model.arch is {model.arch}, which has no tokens to send",
            "remove {it}",
        ),
        (
            not is_evaluated,
            "train.early_stopping metrics.select",
            "data.evaluate is not given, and nothing is evaluated while training",
            "give data.evaluate, or remove {it}",
        ),
        (
            config.metrics.select == "gauc" and config.metrics.group is None,
            "metrics.select",
            "metrics.group is not given, and GAUC is over its groups",
            "give metrics.group, or select auc, logloss or ne",
        ),
    ]


def _within(section: str, keys: str) -> str:
    return " ".join(f"{section}.{key}" for key in keys.split())


def _is_given(config: BaseModel, key: str) -> bool:
    section, leaf = _section(config, key)
    return bool(getattr(section, leaf) != type(section).model_fields[leaf].get_default(call_default_factory=True))


def _shown(config: BaseModel, key: str) -> str:
    section, leaf = _section(config, key)
    value = getattr(section, leaf)
    return "given" if isinstance(value, BaseModel) else f"{value}".lower() if isinstance(value, bool) else f"{value}"


def _section(config: BaseModel, key: str) -> tuple[BaseModel, str]:
    *sections, leaf = key.split(".")
    for name in sections:
        config = getattr(config, name)
    return config, leaf
