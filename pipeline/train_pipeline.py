"""TorchRec's train pipeline, with ranks that agree on every step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from pipeline.batch import Batch


class PeerFailed(RuntimeError):
    """Another rank could not read its batch; that rank reports why."""


class AgreedPipeline(TrainPipelineSparseDist[Batch, Any]):
    """TrainPipelineSparseDist in which all ranks take a batch, or none does; in evaluation mode it evaluates.

    Before each step one small all-reduce on `control` carries: how many ranks have a batch, how many failed to read
    one, and the sum of the global batch's weights, which becomes the batch's `loss_scale` = W / sum. So a rank without
    data ends the epoch for all, an unreadable row ends the job on every rank within the step, and the loss is the
    weighted mean over the global batch. The collective is on the CPU: on CUDA it stalls no stream.

    Args:
        model: DistributedModelParallel over a Ranker.
        optimizer: stepped in training mode.
        device: of this rank.
        control: gloo group over all ranks.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, control: dist.ProcessGroup
    ) -> None:
        super().__init__(model, optimizer, device, execute_all_batches=True)
        self.control = control
        self.wait_seconds = 0.0

    _dataloader_exhausted: bool

    def _next_batch(self, dataloader_iter: Iterator[Batch]) -> Batch | None:
        if dataloader_iter is self._dataloader_iter and self._dataloader_exhausted:
            return None  # all ranks know
        failure: Exception | None = None
        batch: Batch | None = None
        started = time.perf_counter()
        try:
            batch = super()._next_batch(dataloader_iter)
        except Exception as error:
            failure = error
        self.wait_seconds += time.perf_counter() - started
        status = torch.tensor(
            [batch is not None, failure is not None, batch.weight_sum if batch is not None else 0.0],
            dtype=torch.float64,
        )
        dist.all_reduce(status, group=self.control)
        have_batch, have_failed, weight_sum = status.tolist()
        if failure is not None:
            raise failure
        if have_failed:
            raise PeerFailed(f"{int(have_failed)} of {self.control.size()} ranks could not read their batch")
        if batch is None or have_batch < self.control.size():
            self._dataloader_exhausted = True
            return None
        # A global batch of padding alone has weight 0, and loss 0.
        batch.loss_scale = torch.tensor(self.control.size() / weight_sum if weight_sum > 0 else 0.0)
        return batch
