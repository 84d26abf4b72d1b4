"""The whole model: embeddings, head and loss, in the shape TorchRec's pipelines ask for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankmixer.launch.model.torchrec_models import TorchrecModel
from rankmixer.pipeline.read.batch import Batch
from rankmixer_head import RankMixer


class Output(NamedTuple):
    """What a step hands back besides the loss it differentiates.

    Args:
        loss: this rank's share of the global mean loss of what is served, times W; its mean over ranks is the global
            loss. Where a Sparse-MoE trains on two paths, what is differentiated is the mean over both.
        logits_BK: one logit a task.
        batch: the batch they belong to: in a pipeline the caller holds a later one.
    """

    loss: Tensor
    logits_BK: Tensor
    batch: Batch


class TaskLoss(nn.Module):
    """Weighted log loss over examples and tasks.

    loss = sum_bk weight_b * task_weight_k * BCE(logit_bk, label_bk), where the weights have been scaled by W over their
    sum in the global batch: averaged over ranks, as DDP does with gradients, that is the weighted mean over the global
    batch, however the weights lie on the ranks. A Sparse-MoE may train every example on two paths: then it is the mean
    over both.
    """

    weight_K: Tensor

    def __init__(self, task_weights: list[float]) -> None:
        super().__init__()
        self.register_buffer("weight_K", torch.tensor(task_weights, dtype=torch.float32), persistent=False)

    def forward(self, logits_NK: Tensor, labels_BK: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, in fp32, and the loss and logits of the path that serves, which comes last."""
        logits_2BK = logits_NK.unflatten(0, (-1, len(labels_BK)))
        labels_2BK = labels_BK.expand_as(logits_2BK)
        loss_2BK = F.binary_cross_entropy_with_logits(logits_2BK.float(), labels_2BK, reduction="none")
        loss_2 = torch.stack([weight_B @ loss_BK @ self.weight_K for loss_BK in loss_2BK])
        return loss_2.mean(), loss_2[-1].detach(), logits_2BK[-1].detach()


class Ranker(nn.Module):
    """Batch -> (loss, Output). Straight-line glue: the train pipeline traces this forward to find the tables' input.

    Args:
        embeddings: (sparse, dense_BF) -> x_BI.
        head: (x_BI, weight_B) -> logits_BK.
        task_weights: weight of each task's loss.
        autocast: dtype of the head's matrix products; None: fp32.
        device_type: where the head runs; the tracer cannot ask a batch for it.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        head: RankMixer | TorchrecModel,
        task_weights: list[float],
        autocast: torch.dtype | None = None,
        device_type: str = "cpu",
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.head = head
        self.loss = TaskLoss(task_weights)
        self.autocast = autocast
        self.device_type = device_type

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """Return the loss to differentiate and what the loop and the evaluation need."""
        x_BI = self.embeddings(batch.sparse, batch.dense_BF)
        weight_B = batch.loss_scale * batch.weights_B
        with torch.autocast(self.device_type, self.autocast, enabled=self.autocast is not None):
            logits_NK = self.head(x_BI, weight_B)
        loss, served_loss, logits_BK = self.loss(logits_NK, batch.labels_BK, weight_B)
        return loss, Output(served_loss, logits_BK, batch)
