"""What a step computes, sends and holds on 8 to 1,024 GPUs, by arithmetic: `python -m benchmarks.scaling`.

A model, not a measurement: nothing here has run on a GPU. It prints the tables of docs/scaling.md, which says what they
assume and mean. Parameters and FLOPs are the head's own, built on the meta device; bytes are counted as
docs/token_parallelism.md counts them, and that is tested against what ranks really send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankmixer_head import MoEConfig, RankMixer, RankMixerConfig
from rankmixer_head.token_parallel import per_token_parameters

# NVIDIA, H100 SXM data sheet: bfloat16 without sparsity; 80 GB; 900 GB/s of NVLink, both directions together.
PEAK_FLOPS = 989e12
GPU_BYTES = 80e9
NVLINK_BYTES = 450e9  # a second, one direction
NETWORK_BYTES = 400e9 / 8  # the same: one 400 Gb/s port a GPU, as DGX H100 has
NODE = 8  # GPUs

HELD = 4 + 4 + 2 * 4  # bytes a parameter: float32 weight, gradient, two moments of AdamW
GRADIENT = 4  # bytes a value, float32, as DDP sends it unless told otherwise
ACTIVATION = 2  # bytes a value: parallel.exchange=bf16

BATCH = 1024  # examples a GPU
IN_WIDTH = 8192  # say 128 features of width 64
WORLDS = (8, 16, 64, 256, 1024)
MODELS = {
    "RankMixer-1B": RankMixerConfig.preset("1b"),
    "10B MoE": RankMixerConfig.preset("1b", expansion=4, moe=MoEConfig(experts=8)),
}


@dataclass(frozen=True)
class Sent:
    """Bytes that one GPU sends, to others of its node and to other nodes."""

    nvlink: float
    network: float

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.nvlink + other.nvlink, self.network + other.network)

    def __mul__(self, times: float) -> Sent:
        return Sent(self.nvlink * times, self.network * times)

    @property
    def seconds(self) -> float:
        """One after the other, at the full speed of each link."""
        return self.nvlink / NVLINK_BYTES + self.network / NETWORK_BYTES


def all_to_all(held: float, ranks: int) -> Sent:
    """A rank holds `held` bytes, an equal part for each of `ranks` neighbours, itself among them."""
    near = min(ranks, NODE)
    return Sent(held * (near - 1) / ranks, held * (ranks - near) / ranks)


def all_reduce(held: float, ranks: int, near: int) -> Sent:
    """Reduce-scatter, then all-gather, of `held` bytes; `near` of the ranks share a node, and its links to others.

    >>> all_reduce(16.0, ranks=16, near=8)
    Sent(nvlink=28.0, network=2.0)
    """
    nodes = ranks // near
    return Sent(2 * held * (near - 1) / near, 2 * held / near * (nodes - 1) / nodes)


@dataclass(frozen=True)
class Step:
    """What one GPU holds, and what it computes and sends in a step.

    Args:
        held: bytes of weights, gradients and optimizer state.
        flops: of one example, forward and backward, all paths and experts.
        exchanged: with each example, forward and backward.
        reduced: gradients, once.
    """

    held: float
    flops: int
    exchanged: Sent
    reduced: Sent

    def sent(self, batch: int) -> Sent:
        """By one GPU in a step."""
        return self.exchanged * batch + self.reduced

    def ratio(self, batch: int) -> float:
        """Seconds of arithmetic at the peak over seconds of communication."""
        return batch * self.flops / PEAK_FLOPS / self.sent(batch).seconds

    def even_batch(self) -> float:
        """The batch from which arithmetic takes longer than communication; infinite if an exchange takes longer."""
        gained = self.flops / PEAK_FLOPS - self.exchanged.seconds
        return self.reduced.seconds / gained if gained > 0 else math.inf


class Model:
    """A head on the meta device, and the steps of three ways to share it.

    Args:
        config: of the head.
        in_width: I.
    """

    def __init__(self, config: RankMixerConfig, in_width: int) -> None:
        head = RankMixer(config, [in_width], num_tasks=1, device="meta")
        own = set(per_token_parameters(head))
        self.config = config
        self.parameters = sum(p.numel() for p in head.parameters())
        self.per_token = sum(p.numel() for name, p in head.named_parameters() if name in own)
        self.pieces = sum(head.tokenizer.cut_widths)
        self.paths = 1 + (head.controller is not None and head.controller.has_two_paths)
        self.flops = head.training_flops_per_example()

    def data_parallel(self, world: int) -> Step:
        """Every GPU holds everything; DDP averages all gradients."""
        reduced = all_reduce(GRADIENT * self.parameters, world, min(world, NODE))
        return Step(HELD * self.parameters, self.flops, Sent(0, 0), reduced)

    def token_parallel(self, world: int, group: int) -> Step:
        """rankmixer_head/token_parallel.py."""
        T, D, L = self.config.tokens, self.config.width, self.config.layers
        values = self.pieces + self.paths * (L * T * D + group * D)  # enter, mixings, leave
        return self._shared(world, group, values)

    def dispatch_and_combine(self, world: int, group: int) -> Step:
        """Every token goes to the owner of its weights and comes back: for the tokenizer, and in each layer."""
        T, D, L = self.config.tokens, self.config.width, self.config.layers
        return self._shared(world, group, self.pieces + T * D + self.paths * 2 * L * T * D)

    def _shared(self, world: int, group: int, values: int) -> Step:
        """Per-token weights shared by `group` GPUs; `values` for each of a rank's examples, forward."""
        weights = 4 * group if self.config.moe else 0  # bytes: of an example in the loss, to everybody
        exchanged = all_to_all(ACTIVATION * values + weights, group) * 2
        rest = self.parameters - self.per_token
        held = self.per_token / group + rest
        reduced = all_reduce(GRADIENT * self.per_token / group, world // group, near=1)  # P >= 8: one on a node
        return Step(HELD * held, self.flops, exchanged, reduced + all_reduce(GRADIENT * rest, world, min(world, NODE)))


def steps(model: Model) -> Iterator[tuple[int, str, Step]]:
    """(GPUs, how they share it, a step) for every line of the table."""
    for world in WORLDS:
        yield world, "data parallel", model.data_parallel(world)
        yield world, f"dispatch + combine, P = {NODE}", model.dispatch_and_combine(world, NODE)
        for group in (NODE, model.config.tokens):
            if world >= group:
                yield world, f"token parallel, P = {group}", model.token_parallel(world, group)


def row(world: int, way: str, step: Step) -> dict[str, str]:
    """One line of a table."""
    sent, even = step.sent(BATCH), step.even_batch()
    return {
        "GPUs": f"{world:,}",
        "how": way,
        "held, GB": f"{step.held / 1e9:.1f}{' (too much)' if step.held > GPU_BYTES else ''}",
        "NVLink, MB": f"{sent.nvlink / 1e6:,.0f}",
        "network, MB": f"{sent.network / 1e6:,.0f}",
        "arithmetic, ms": f"{BATCH * step.flops / PEAK_FLOPS * 1e3:.1f}",
        "communication, ms": f"{sent.seconds * 1e3:.1f}",
        "ratio": f"{step.ratio(BATCH):.2f}",
        "even at B": f"{math.ceil(even):,}" if math.isfinite(even) else "never",
    }


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a table."""
    columns = list(rows[0])
    lines = [columns, ["---" if column == "how" else "---:" for column in columns]]
    lines += [list(line.values()) for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> dict[str, str]:
    """Heading and table, one pair a model."""
    found = {}
    for name, config in MODELS.items():
        model = Model(config, IN_WIDTH)
        sizes = f"T = {config.tokens}, D = {config.width}, L = {config.layers}, k = {config.expansion}"
        sizes += f", E = {config.moe.experts}" if config.moe else ""
        size, flops = f"{model.parameters / 1e9:.2f} billion parameters", f"{model.flops / 1e9:.1f} GFLOP an example"
        found[f"{name}: {size} ({sizes}), {flops}"] = markdown([row(*line) for line in steps(model)])
    return found


def main() -> None:
    for heading, table in tables().items():
        print(f"## {heading}\n\n{table}\n")
    result: dict[str, Any] = {"B": BATCH}
    for name, config in MODELS.items():
        ratios = {
            f"{name}, {way}, W = {world}": step.ratio(BATCH) for world, way, step in steps(Model(config, IN_WIDTH))
        }
        result |= {key: round(ratio, 3) for key, ratio in ratios.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
