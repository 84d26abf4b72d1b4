"""The reliability diagram of an evaluation: predicted against observed rates, over all ranks, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rankmixer.pipeline.metrics.metrics import LOGIT_LIMIT
from rankmixer.pipeline.metrics.ranking import all_sum

CELLS = 1024  # of equal width in logit, from -LOGIT_LIMIT to LOGIT_LIMIT: what ranks add up
BINS = 20  # of about equal weight, made of neighbouring cells: what is shown
COLUMNS = ("weight", "prediction", "positive", "rows")


class Reliability:
    """What share of the rows is positive where the model says so and so much.

    Rows are added up in narrow cells of equal width in logit, which need no rows to be kept and are summed over ranks;
    `compute` joins neighbours to at most 20 bins of about equal weight. Means are over the rows themselves, so only the
    limits of the bins depend on the cells. Rows of weight 0 count nowhere.

    Args:
        tasks: names of the K tasks.
        device: where the sums are kept; the process group's backend for it is used.

    >>> reliability = Reliability(["click"])
    >>> logits_BK = torch.tensor([[-1.0], [-1.0], [2.0], [2.0]])
    >>> reliability.update(logits_BK, torch.tensor([[0.0], [1.0], [1.0], [1.0]]), torch.ones(4))
    >>> [(round(bin["prediction"], 3), bin["observed"], bin["rows"]) for bin in reliability.compute()["click"]]
    [(0.269, 0.5, 2), (0.881, 1.0, 2)]
    """

    def __init__(self, tasks: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self.tasks = list(tasks)
        self._sums_KCS = torch.zeros(len(self.tasks), CELLS, len(COLUMNS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits_BK: Tensor, labels_BK: Tensor, weights_B: Tensor) -> None:
        """Add a batch. Local: no communication, and no waiting for the device."""
        device, tasks = self._sums_KCS.device, len(self.tasks)
        counted_B1 = weights_B.to(device).unsqueeze(1) != 0
        logits_BK = torch.where(counted_B1, logits_BK.to(device, torch.float32), 0.0)
        labels_BK = torch.where(counted_B1, labels_BK.to(device), 0.0)
        weights_BK = weights_B.to(device, torch.float64).unsqueeze(1).expand_as(logits_BK)
        scaled_BK = (logits_BK.nan_to_num() + LOGIT_LIMIT) * (CELLS / (2 * LOGIT_LIMIT))
        cell_BK = torch.arange(tasks, device=device) * CELLS + scaled_BK.clamp(0, CELLS - 1).long()
        columns = (
            weights_BK,
            logits_BK.double().sigmoid() * weights_BK,
            labels_BK * weights_BK,
            counted_B1.expand_as(logits_BK),
        )
        values_NS = torch.stack([column.double().flatten() for column in columns], dim=1)
        self._sums_KCS.view(-1, len(COLUMNS)).index_add_(0, cell_BK.flatten(), values_NS)

    def compute(self, group: ProcessGroup | None = None) -> dict[str, list[dict[str, Any]]]:
        """For every task its bins, by rising prediction: mean prediction, observed rate, weight and rows. Collective.

        A mean that is not a number (a logit was none) is None.
        """
        sums_KCS = all_sum(self._sums_KCS.clone(), group).cpu()
        return {task: _bins(sums_CS) for task, sums_CS in zip(self.tasks, sums_KCS, strict=True)}


def _bins(sums_CS: Tensor) -> list[dict[str, Any]]:
    """At most BINS bins of neighbouring cells; a cell is not divided, so a bin may weigh more than its share."""
    sums_CS = sums_CS[sums_CS[:, 0] > 0]
    weight_C = sums_CS[:, 0]
    # A cell belongs to the bin in which the middle of its weight lies.
    middle_C = (weight_C.cumsum(0) - weight_C / 2) / weight_C.sum()
    bin_C = (middle_C * BINS).long().clamp(max=BINS - 1)
    sums_NS = torch.zeros(BINS, len(COLUMNS), dtype=torch.float64).index_add_(0, bin_C, sums_CS)
    found = []
    for weight, prediction, positive, rows in sums_NS.tolist():
        if weight:
            means = {"prediction": prediction / weight, "observed": positive / weight}
            known = {name: mean if math.isfinite(mean) else None for name, mean in means.items()}
            found.append({**known, "weight": weight, "rows": int(rows)})
    return found
