"""A RankMixer in torchrec.models.dlrm.DLRM, whose parts are sparse_arch, dense_arch, inter_arch and over_arch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConcatenateEmbeddings(nn.Module):
    """In the place of DLRM's inter_arch: hands the embeddings on as they are, so that a RankMixer can mix them.

    DLRM calls it with the vector that its dense_arch makes of the numbers, and the embeddings of the F sparse features,
    all D wide. A RankMixer takes the place of over_arch as it is: the widths of its input are (F + 1) times D.

    >>> from rankmixer_head import RankMixer, RankMixerConfig
    >>> F, D = 5, 16
    >>> inter_arch = ConcatenateEmbeddings()
    >>> over_arch = RankMixer(RankMixerConfig.preset("tiny"), in_widths=[D] * (F + 1), num_tasks=1)
    >>> over_arch(inter_arch(dense_features=torch.zeros(3, D), sparse_features=torch.zeros(3, F, D))).shape
    torch.Size([3, 1])
    """

    def forward(
        self, dense_features: Float[Tensor, "B D"], sparse_features: Float[Tensor, "B F D"]
    ) -> Float[Tensor, "B I"]:
        """Return x_BI, I = (F + 1) * D: the numbers' vector, then the embeddings in their order."""
        return torch.cat([dense_features, sparse_features.flatten(1)], dim=1)
