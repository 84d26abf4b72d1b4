"""TorchRec's train pipeline, with ranks that agree on every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from rankmixer.pipeline.base.errors import Preempted
from rankmixer.pipeline.read.batch import Batch, loss_scale


class PeerFailed(RuntimeError):
    """Another rank could not read its batch; that rank reports why."""


class AgreedPipeline(TrainPipelineSparseDist[Batch, Any]):
    """TrainPipelineSparseDist in which all ranks take a batch, or none does; in evaluation mode it evaluates.

    Before each step one small all-reduce on `control` carries: how many ranks have a batch, how many failed to read
    one, how many were told to leave, and the sum of the global batch's weights, which becomes the batch's
    `loss_scale` = W / sum. So a rank without data ends the epoch for all, an unreadable row ends the job on every rank
    within the step, a signal to one rank lets the pipeline of all run dry after the same step, and the loss is the
    weighted mean over the global batch. The collective is on the CPU: on CUDA it stalls no stream.

    Args:
        model: DistributedModelParallel over a Ranker.
        optimizer: stepped in training mode.
        device: of this rank.
        control: gloo group over all ranks.
        is_told_to_leave: asked before each step; True on any rank ends the steps of all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        control: dist.ProcessGroup,
        is_told_to_leave: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(model, optimizer, device, execute_all_batches=True)
        self.control, self.is_told_to_leave = control, is_told_to_leave
        self.wait_seconds = 0.0
        self._leaves = False

    _dataloader_exhausted: bool

    def progress(self, dataloader_iter: Iterator[Batch]) -> Any:
        """Take one step.

        Raises:
            StopIteration: there is no batch left.
            Preempted: nor will there be one; what had been read ahead and not begun is not trained.
        """
        try:
            return super().progress(dataloader_iter)
        except StopIteration:
            if self._leaves:
                raise Preempted from None
            raise

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
            [
                batch is not None,
                failure is not None,
                self.is_told_to_leave(),
                batch.weight_sum if batch is not None else 0.0,
            ],
            dtype=torch.float64,
        )
        dist.all_reduce(status, group=self.control)
        have_batch, have_failed, are_told_to_leave, weight_sum = status.tolist()
        if failure is not None:
            raise failure
        if have_failed:
            raise PeerFailed(f"{int(have_failed)} of {self.control.size()} ranks could not read their batch")
        self._leaves = are_told_to_leave > 0
        if self._leaves or batch is None or have_batch < self.control.size():
            self._dataloader_exhausted = True
            return None
        batch.loss_scale = torch.tensor(loss_scale(weight_sum, self.control.size()))
        return batch
