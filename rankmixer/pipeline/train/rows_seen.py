"""What the rows of some batches held: labels, and ids that stand for unknown ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from rankmixer.pipeline.read.batch import Batch
from rankmixer.pipeline.schema.features import Id, IdList
from rankmixer.pipeline.schema.schema import Schema

LEAST_ROWS = 100


class Rows(NamedTuple):
    """What some rows held, over all ranks.

    Args:
        positives: of each task, the weighted sum of the labels.
        weight: of the rows.
        unknown: of each feature that keeps a row for unknown ids, how many lookups fell on it, of how many.
    """

    positives: Mapping[str, float]
    weight: float
    unknown: Mapping[str, tuple[float, float]]

    def rate(self, task: str) -> float:
        """The mean label; nan without rows."""
        return self.positives[task] / self.weight if self.weight else math.nan

    def unknown_share(self, feature: str) -> float:
        """Share of the lookups that fell on the row for unknown ids; 0 of too few."""
        unknown, lookups = self.unknown[feature]
        return unknown / lookups if lookups >= LEAST_ROWS else 0.0


class RowsSeen:
    """Sums over batches, kept on the device until they are asked for.

    Args:
        schema: of the batches.
        device: where they are.
    """

    def __init__(self, schema: Schema, device: torch.device) -> None:
        self._schema = schema
        self._reserved = {
            name: feature.rows - 1
            for name, feature in schema.features.items()
            if isinstance(feature, Id | IdList) and feature.reserves
        }
        self._sums = torch.zeros(len(schema.tasks) + 1 + 2 * len(self._reserved), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Add a batch. Local, without waiting for the device."""
        weights_B = batch.weights_B.double()
        unknown = []
        for name, row in self._reserved.items():
            ids = batch.sparse[name].values()
            unknown += [(ids == row).sum(), torch.tensor(ids.numel(), device=ids.device)]
        positives_K = weights_B @ batch.labels_BK.double()
        self._sums += torch.stack([*positives_K, weights_B.sum(), *(count.double() for count in unknown)])

    def total(self, group: dist.ProcessGroup) -> Rows:
        """The sums over all ranks of a gloo group. Collective."""
        sums = self._sums.cpu()
        dist.all_reduce(sums, group=group)
        tasks = self._schema.tasks
        positives, weight, counts = (
            sums[: len(tasks)].tolist(),
            float(sums[len(tasks)]),
            sums[len(tasks) + 1 :].tolist(),
        )
        unknown = zip(counts[::2], counts[1::2], strict=True)
        return Rows(dict(zip(tasks, positives, strict=True)), weight, dict(zip(self._reserved, unknown, strict=True)))
