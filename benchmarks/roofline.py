"""Where the time of the head goes: every kind of operation against what memory and arithmetic allow.

An operation takes at least its bytes over the bandwidth, and at least its FLOPs over the rate of bare products. Both
are measured in the same run: the bandwidth by a copy far larger than the caches, read and write counted; the rate by
torch.bmm on the shapes of the FFN. An activation that stays in a cache can be faster than that, memory mapped anew for
every result slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankmixer_head import RankMixerConfig
from rankmixer_head.mixing import mix_and_add

FLOAT = 4  # bytes
COPY_FLOATS = 2**26


@dataclass(frozen=True)
class Part:
    """One kind of operation.

    Args:
        name: what it is.
        count: how often a forward does it.
        flops: of one, forward; three times as many in training.
        floats: read or written by one forward.
        floats_training: the same for forward and backward.
        run: the operation.
        inputs: of `run`.
    """

    name: str
    count: int
    flops: int
    floats: int
    floats_training: int
    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def bound(self, bandwidth: float, rate: float, training: bool = False) -> float:
        """Seconds that all of them take at least.

        >>> Part("add", 2, 0, 300, 900, torch.add, ()).bound(bandwidth=1200.0, rate=1.0)
        2.0
        """
        floats = self.floats_training if training else self.floats
        return self.count * max(FLOAT * floats / bandwidth, (3 if training else 1) * self.flops / rate)

    def seconds(self, repeats: int, training: bool = False) -> float:
        """Seconds that all of them took, each the fastest of some."""
        inputs = [tensor.detach().requires_grad_(training) for tensor in self.inputs]
        with torch.set_grad_enabled(training):
            ones = torch.ones_like(self.run(*inputs))

            def once() -> None:
                out = self.run(*inputs)
                if training:
                    torch.autograd.grad(out, inputs, ones)

            return self.count * fastest(once, repeats)


def parts(config: RankMixerConfig, batch: int, in_width: int) -> list[Part]:
    """The operations of a dense RankMixer on a batch."""
    T, B, D, M, L = config.tokens, batch, config.width, config.hidden, config.layers
    x_TBD, s_TBD, hidden_TBM, out_TBM = (torch.randn(T, B, width) for width in (D, D, M, M))
    up_TDM, down_TMD, up_bias_T1M, down_bias_T1D = (
        torch.randn(shape) for shape in ((T, D, M), (T, M, D), (T, 1, M), (T, 1, D))
    )
    pieces_TBd, tokens_TdD = torch.randn(T, B, in_width // T), torch.randn(T, in_width // T, D)
    norm = torch.ones(D), torch.zeros(D)
    wide, narrow, flops = T * B * M, T * B * D, 2 * T * B * D * M
    moved = wide + narrow + T * D * M

    def gelu(hidden_TBM: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.gelu(hidden_TBM)
        return torch.ops.aten.gelu.out(hidden_TBM, out=out_TBM)  # the head writes over its input: no fresh memory

    def bias(bias_T1N: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return bias_T1N.expand(-1, B, -1).clone()
        return (out_TBM if bias_T1N.shape[2] == M else x_TBD).copy_(bias_T1N)

    def layer_norm(x_TBD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        return F.layer_norm(x_TBD, (D,), weight_D, bias_D)

    tokens_floats = B * in_width + narrow + in_width * D
    return [
        Part("product up", L, flops, moved, 3 * moved, torch.bmm, (s_TBD, up_TDM)),
        Part("product down", L, flops, moved, 3 * moved, torch.bmm, (hidden_TBM, down_TMD)),
        # torch.baddbmm copies the bias to where it adds the product; the gradient is a sum over the examples.
        Part("bias up", L, 0, 2 * wide, 3 * wide, bias, (up_bias_T1M,)),
        Part("bias down", L, 0, 2 * narrow, 3 * narrow, bias, (down_bias_T1D,)),
        Part("GELU", L, 0, 2 * wide, 5 * wide, gelu, (hidden_TBM,)),
        Part("LayerNorm", 2 * L, 0, 2 * narrow, 5 * narrow, layer_norm, (x_TBD, *norm)),
        Part("mixing + residual", L, 0, 3 * narrow, 6 * narrow, mix_and_add, (x_TBD,)),
        # The gradient of a sum is handed on; where it meets the FFN's, at its input, the two are added.
        Part("residual of the FFN", L, 0, 3 * narrow, 6 * narrow, torch.add, (x_TBD, s_TBD)),
        Part(
            "tokenizer", 1, 2 * B * in_width * D, tokens_floats, 3 * tokens_floats, torch.bmm, (pieces_TBd, tokens_TdD)
        ),
        Part("mean of the tokens", 1, 0, narrow, 2 * narrow, lambda x_TBD: x_TBD.mean(0), (x_TBD,)),
    ]


def roofline(
    preset: str, config: RankMixerConfig, batch: int, in_width: int, head: tuple[float, float], repeats: int
) -> list[dict[str, Any]]:
    """A table of the operations of one preset, with their sum and the head as it was measured (forward, training)."""
    bandwidth = copy_bandwidth()
    found = parts(config, batch, in_width)
    seconds = {part.name: [part.seconds(repeats, training) for training in (False, True)] for part in found}
    forward_rate, training_rate = (product_rate(found, seconds, training) for training in (False, True))
    lines: dict[str, list[float]] = {}
    for part in found:
        forward, training = seconds[part.name]
        least = part.bound(bandwidth, forward_rate), part.bound(bandwidth, training_rate, training=True)
        lines[part.name] = [value * 1e3 for value in (least[0], forward, least[1], training)]
    lines["sum"] = [sum(column) for column in zip(*lines.values(), strict=True)]
    columns = ["forward at least, ms", "forward, ms", "training at least, ms", "training, ms"]
    rows = [{"preset": preset, "part": name, **dict(zip(columns, line, strict=True))} for name, line in lines.items()]
    measured = dict(zip((columns[1], columns[3]), (seconds * 1e3 for seconds in head), strict=True))
    machine = f"{bandwidth / 1e9:.1f} GB/s, {forward_rate / 1e9:.0f} and {training_rate / 1e9:.0f} GFLOP/s"
    return [*rows, {"preset": preset, "part": "head, measured", **measured, "machine": machine}]


def product_rate(found: Sequence[Part], seconds: Mapping[str, Sequence[float]], training: bool) -> float:
    """FLOP/s of the bare products among the parts, from what they took (forward, training)."""
    bare = [part for part in found if part.name.startswith("product")]
    flops = sum(part.count * part.flops for part in bare) * (3 if training else 1)
    return flops / sum(seconds[part.name][training] for part in bare)


def copy_bandwidth(floats: int = COPY_FLOATS, repeats: int = 5) -> float:
    """Bytes a second, read and written, of a copy between two buffers that exist."""
    source, target = torch.ones(floats), torch.ones(floats)
    return 2 * FLOAT * floats / fastest(lambda: target.copy_(source), repeats)


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls; the first is not counted."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
