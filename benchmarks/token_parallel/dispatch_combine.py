"""What token parallelism is compared with: in each layer every token goes to its weights and comes back."""

from torch import Tensor, nn

from rankmixer_head import RankMixer, RankMixerBlock
from rankmixer_head.mixing import mix_tokens
from rankmixer_head.token_group import TokenGroup


class DispatchAndCombine(nn.Module):
    """A head whose tokens are shared, computed as a mixture of experts usually is: mixing at home, FFNs at the owner.

    Args:
        head: a dense RankMixer of the paper's block, after shard_tokens; its weights and its tokenizer are used.
    """

    def __init__(self, head: RankMixer) -> None:
        super().__init__()
        assert isinstance(head.token_group, TokenGroup)
        self.head, self.group = head, head.token_group

    def forward(self, x_BI: Tensor) -> Tensor:
        """The logits of the head."""
        own_TBD, _ = self.head.enter(x_BI, None)
        x_TBD = self.combine(own_TBD)
        for block in self.head.blocks:
            assert isinstance(block, RankMixerBlock)
            s_TBD = block.mixing_norm(mix_tokens(x_TBD) + x_TBD)
            v_TBD = self.combine(block.ffn(self.dispatch(s_TBD)))
            x_TBD = block.ffn_norm(v_TBD + s_TBD)
        logits_BK: Tensor = self.head.heads(x_TBD.mean(0))
        return logits_BK

    def dispatch(self, x_TBD: Tensor) -> Tensor:
        """All tokens of the own examples -> the own tokens of the group's examples."""
        P, (T, B, D) = self.group.size, x_TBD.shape
        received_PTBD = self.group._swap(x_TBD.flatten()).view(P, T // P, B, D)
        return received_PTBD.transpose(0, 1).reshape(T // P, P * B, D)

    def combine(self, x_TBD: Tensor) -> Tensor:
        """The way back."""
        P, (T, B, D) = self.group.size, x_TBD.shape
        sent_PTBD = x_TBD.view(T, P, B // P, D).transpose(0, 1)
        return self.group._swap(sent_PTBD.flatten()).view(P * T, B // P, D)
