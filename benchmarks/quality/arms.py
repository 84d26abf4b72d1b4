"""What the suite of heads compares: groups of arms, each a list of overrides over configs/ml-1m.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TypeVar, get_args

import torch
import yaml

from rankmixer.launch.config.config import load_config
from rankmixer.launch.model.build import build_ranker
from rankmixer_head.config import Ablation, Routing
from rankmixer_head.counters import parameters

CONFIG = "configs/ml-1m.yaml"
BASE = "rankmixer"  # the faithful one, that all others are compared with
TORCHREC = ("dlrm", "dcn", "deepfm", "mlp")
TOLERANCE = 0.05
RATES = (1e-3, 2e-3, 4e-3, 8e-3)  # of the dense part: the same tuning for ours and for its rivals
# E experts of hidden width D/2 side by side are the FFN of tiny, k = 4: all open, the MoE is as large as the base.
EXPERTS, EXPERT_EXPANSION = 8, 0.5
ROUTINGS: tuple[str, ...] = get_args(Routing)
RATIOS = (0.25, 0.125, 0.5, 1.0)  # in order of importance
FEW_TOKENS = ((BASE, 2, 64), (BASE, 4, 48), ("tokenmixer_large", 2, 64), ("tokenmixer_large", 4, 48))
SCHEMA, DIM = "configs/movielens.schema.yaml", 16
T = TypeVar("T")


@dataclass(frozen=True)
class Arm:
    """One thing to be compared.

    Args:
        group: of arms that belong together.
        name: unique.
        overrides: over configs/ml-1m.yaml.
        rates: dense learning rates to choose from on the validation rows; none: what was chosen for the base.
        final: whether it is always run with all seeds on the test rows; else only if it is among the best of its group.
    """

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    final: bool = True


@dataclass
class Arms:
    """All arms that can be built, and why the others cannot."""

    arms: list[Arm] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def named(self, name: str) -> Arm | None:
        """The arm of this name, if it can be built."""
        return next((arm for arm in self.arms if arm.name == name), None)


def size(overrides: Iterable[str]) -> tuple[int, int]:
    """Parameters and forward FLOPs per example of the dense part, built on the meta device."""
    head = build_ranker(load_config(CONFIG, list(overrides)), torch.device("cpu")).head
    return parameters(head), head.flops_per_example()


def match(target: int, candidates: Iterable[T], parameters: Callable[[T], int]) -> T:
    """The candidate whose number of parameters is nearest to `target`.

    Raises:
        ValueError: the nearest is not within 5 %.

    >>> match(100, [3, 9, 10, 12], lambda width: width**2)
    10
    """
    counted = [(abs(parameters(candidate) - target), candidate) for candidate in candidates]
    distance, nearest = min(counted, key=lambda pair: pair[0])
    if distance > TOLERANCE * target:
        raise ValueError(f"{nearest} is {distance} parameters away from {target}, and the nearest; widen the search")
    return nearest


def candidates() -> dict[str, list[tuple[str, ...]]]:
    """The sizes among which each architecture's match for the base is looked for."""
    expansions = [step / 8 for step in range(4, 57)]
    per_group = ("model.tokenizer=per_group", "model.tokens=2", "model.width=64")
    return {
        f"{BASE}, mixing_gain": [("model.mixing_gain=true",)],
        f"{BASE}, per_group": [(*per_group, f"model.expansion={k}") for k in expansions],
        "tokenmixer_large": [("model.arch=tokenmixer_large", f"model.expansion={k}") for k in expansions],
        **{
            arch: [(f"model.arch={arch}", f"model.hidden=[{2 * width}, {width}]") for width in range(8, 289, 4)]
            for arch in TORCHREC
        },
    }


def matched(name: str, common: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The overrides, `common` among them, that give an architecture the base's number of dense parameters."""
    sizes = [(*overrides, *common) for overrides in candidates()[name]]
    return match(size(common)[0], sizes, lambda overrides: size(overrides)[0])


def matched_tokens(arch: str, tokens: int, width: int) -> tuple[str, ...]:
    """The overrides that give few and wide tokens the base's number of dense parameters."""
    sizes = (f"model.arch={arch}", f"model.tokens={tokens}", f"model.width={width}")
    expansions = [(*sizes, f"model.expansion={step / 8}") for step in range(4, 57)]
    return match(size(())[0], expansions, lambda overrides: size(overrides)[0])


def architectures() -> Arms:
    """Ours, its successor and torchrec's own models at matched dense parameters, each with the same tuning."""
    found = Arms([Arm("architectures", BASE, (), RATES)])
    for name in candidates():
        try:
            found.arms.append(Arm("architectures", name, matched(name), RATES))
        except Exception as error:
            found.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def ablations() -> list[Arm]:
    """What the paper takes away or replaces; not matched in parameters."""
    names = [name for name in get_args(Ablation) if name != "none"]
    return [Arm("ablations", name, (f"model.ablation={name}",)) for name in names]


def moe() -> list[Arm]:
    """Every routing at every budget; finalists are, at 1/4, the best DTSI reading (quality_head.py) and its rivals."""
    return [
        Arm(
            "moe",
            moe_name(routing, ratio),
            _moe(routing, ratio),
            final=ratio == 0.25 and not routing.startswith("dtsi"),
        )
        for ratio, routing in product(RATIOS, ROUTINGS)
    ]


def moe_name(routing: str, ratio: float) -> str:
    """The name of a MoE arm.

    >>> moe_name("dtsi", 0.25)
    'dtsi 1/4'
    """
    return f"{routing} 1/{round(1 / ratio)}"


def _moe(routing: str, ratio: float) -> tuple[str, ...]:
    moe = f"{{experts: {EXPERTS}, active_ratio: {ratio}, routing: {routing}}}"
    return (f"model.expansion={EXPERT_EXPANSION}", f"model.moe={moe}")


def settle() -> list[Arm]:
    """Choices for which there must be a default; "paper" is RMSProp at 0.01 and, as here everywhere, Adagrad."""
    dense = {"rmsprop": (1e-3, 3e-3), "adagrad": (1e-2, 2e-2, 4e-2), "muon": (2e-3, 5e-3, 2e-2)}
    choices: list[tuple[str, tuple[str, ...], tuple[float, ...]]] = [
        ("paper", ("optimizer.dense.kind=rmsprop",), (1e-2,)),
        *((f"dense {kind}", (f"optimizer.dense.kind={kind}",), rates) for kind, rates in dense.items()),
        ("tables rowwise_adagrad 0.05", _sparse("rowwise_adagrad", 0.05), ()),
        ("tables rowwise_adagrad 0.1", _sparse("rowwise_adagrad", 0.1), ()),
        ("tables adagrad 0.1", _sparse("adagrad", 0.1), ()),
        ("initialisation xavier", ("model.initialisation=xavier",), ()),
        ("global token", ("model.global_token=true",), ()),
    ]
    return [Arm("settle", name, overrides, rates, final=name == "paper") for name, overrides, rates in choices]


def _sparse(kind: str, lr: float) -> tuple[str, ...]:
    return (f"optimizer.sparse.kind={kind}", f"optimizer.sparse.lr={lr}")


def extras() -> list[Arm]:
    """How far it goes with more epochs, and with wider tables: the base, its successor, and the best rival."""
    wide = _dim(2 * DIM)
    few = {(block, tokens): (*matched_tokens(block, tokens, width),) for block, tokens, width in FEW_TOKENS}
    return [
        *(
            Arm("extras", f"{block}, T = {tokens}", sizes, RATES[:2], final=False)
            for (block, tokens), sizes in few.items()
        ),
        Arm("extras", "4 epochs", ("train.epochs=4",), final=False),
        Arm("extras", "warm-up of 100 steps", ("optimizer.schedule.warmup_steps=100",), RATES[1:3], final=False),
        Arm("extras", f"dim {2 * DIM}", wide, final=False),
        Arm("extras", f"tokenmixer_large, dim {2 * DIM}", matched("tokenmixer_large", wide), RATES[:2]),
        Arm("extras", f"dcn, dim {2 * DIM}", matched("dcn", wide), RATES[2:]),
    ]


def _dim(dim: int) -> tuple[str, ...]:
    """The feature schema with all tables of another dim, as a value: paths are no part of a configuration."""
    if dim == DIM:
        return ()
    schema = yaml.safe_load(Path(SCHEMA).read_text())
    for feature in schema["features"].values():
        feature["dim"] = dim
    return (f"feature_schema={json.dumps(schema)}",)


def all_arms() -> Arms:
    """Every arm, the base first."""
    found = architectures()
    for arm in (*moe(), *settle(), *extras(), *ablations()):
        try:
            size(arm.overrides)
            found.arms.append(arm)
        except Exception as error:
            found.errors[arm.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


GROUPS = ("architectures", "moe", "settle", "extras", "ablations")
