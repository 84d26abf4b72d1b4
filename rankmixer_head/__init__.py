"""RankMixer (arXiv 2507.15551) in plain torch: from the embeddings of an example to one logit per task."""

from rankmixer_head.block import RankMixerBlock, TokenMixerLargeBlock
from rankmixer_head.config import MoEConfig, RankMixerConfig
from rankmixer_head.drop_in import ConcatenateEmbeddings
from rankmixer_head.heads import TaskHeads
from rankmixer_head.mixing import mix_tokens
from rankmixer_head.model import RankMixer
from rankmixer_head.moe.per_token_moe import PerTokenMoE
from rankmixer_head.moe.routing import Activity
from rankmixer_head.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_head.tokenizer import Tokenizer

__all__ = [
    "Activity",
    "ConcatenateEmbeddings",
    "MoEConfig",
    "PerTokenFFN",
    "PerTokenMoE",
    "PerTokenSwiGLU",
    "RankMixer",
    "RankMixerBlock",
    "RankMixerConfig",
    "TaskHeads",
    "TokenMixerLargeBlock",
    "Tokenizer",
    "mix_tokens",
]
