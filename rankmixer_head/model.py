"""RankMixer: embeddings of an example in, one logit for each task out."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankmixer_head.block import RankMixerBlock
from rankmixer_head.config import RankMixerConfig
from rankmixer_head.heads import TaskHeads
from rankmixer_head.initialise import initialise
from rankmixer_head.tokenizer import Tokenizer


class RankMixer(nn.Module):
    """The dense RankMixer of arXiv 2507.15551: tokens, L blocks, the mean of the tokens, a head per task.

    Inside, activations are token-major, (T, B, D): every per-token product is one batched matrix product over memory
    as it lies.

    Args:
        config: sizes; see RankMixerConfig.preset.
        in_widths: width of each semantic group of the input, in order; I is their sum.
        num_tasks: K.
        device: of the parameters, "meta" included.

    >>> model = RankMixer(RankMixerConfig.preset("tiny"), in_widths=[48, 16, 5], num_tasks=2)
    >>> model(torch.zeros(3, 69)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        config: RankMixerConfig,
        in_widths: Sequence[int],
        num_tasks: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_tasks = num_tasks
        self.tokenizer = Tokenizer(config, in_widths, device)
        self.blocks = nn.ModuleList(
            RankMixerBlock(config.tokens, config.width, config.hidden, device) for _ in range(config.layers)
        )
        self.heads = TaskHeads(config.width, config.head_hidden, num_tasks, device)

    def reset_parameters(self) -> None:
        """Start all weights anew, by the table in initialise.py."""
        initialise(self)

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B K"]:
        """Logits of the tasks, float32 under autocast too."""
        x_TBD = self.tokenizer(x_BI)
        for block in self.blocks:
            x_TBD = block(x_TBD)
        return self.heads(x_TBD.mean(0))

    def flops_per_example(self) -> int:
        """FLOPs of the matrix products of one example's forward; training takes three times as many.

        >>> RankMixer(RankMixerConfig.preset("small"), [1024], num_tasks=1, device="meta").flops_per_example()
        34079232
        """
        config = self.config
        tokenizer = sum(self.tokenizer.widths) * config.width
        ffn = 2 * config.layers * config.tokens * config.width * config.hidden
        heads = self.num_tasks * sum(i * o for i, o in itertools.pairwise((config.width, *config.head_hidden, 1)))
        return 2 * (tokenizer + ffn + heads)
