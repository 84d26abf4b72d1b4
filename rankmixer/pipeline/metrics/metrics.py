"""Metrics of binary tasks over a whole evaluation, exact and equal on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from rankmixer.pipeline.metrics.ranking import all_sum, exact_auc, grouped_auc, histogram_auc, route_by_group

# Logits beyond +-LOGIT_LIMIT share the first and last histogram bin; the error bound counts them like any other bin.
LOGIT_LIMIT = 16.0
LOWER_IS_BETTER = ("logloss", "ne")
SUMS = ("loss", "prediction", "positive", "weight", "rows", "bad_labels", "soft_labels", "bad_weights", "ungrouped")


class Metrics:
    """AUC, GAUC, log loss, normalised entropy and calibration of one evaluation.

    Make a new object for each evaluation: nothing carries over. Rows of weight 0 count nowhere, whatever their logits
    and labels are. Logits are ranked as float32; sums are float64.

    - `auc`: weighted area under the ROC curve; a tie between a positive and a negative counts half.
    - `gauc`: the mean of the AUC within each group (a user, a session) that has both classes, weighted by the group's
      total weight. Rows without a group are in none of them.
    - `ungrouped`: the share of the weight that rows without a group have; with a `group` only.
    - `logloss`: weighted mean of -log p(label), computed from the logits.
    - `ne`: log loss over the entropy of the mean label, the log loss of the best constant (He et al. 2014).
    - `calibration`: mean prediction over mean label.
    - `soft_labels`: how many labels lie between 0 and 1, if any do. A soft label is the probability of a positive:
      log loss is the cross entropy, NE and calibration take the mean label. `auc` and `gauc` are about pairs of a
      positive and a negative, and leave rows with soft labels out; without any other they are not defined.
    - `rows`, `weight`: how many rows counted, and their weight.

    A metric that is not defined is nan: all but `rows` and `weight` without rows, `auc` and `ne` when only one class
    is present, `gauc` when no group has both classes, `calibration` without a positive; all but those two and
    `ungrouped` when a logit is nan.

    Memory per rank: 8 bytes per row and task, and 9 per row for the group. `compute` takes one task after another and
    needs about 70 bytes per local row more while it works, 100 with groups or several ranks; it never gathers the rows
    of all ranks on one of them. With `auc_bins` no rows are kept for the AUC, only a histogram of 16 bytes per bin and
    task, and `auc_error_bound` says how far it can be from the exact one: half of the mass of the positive-negative
    pairs that share a bin, over the mass of all such pairs. GAUC stays exact, and keeps rows.

    Args:
        tasks: names of the K tasks. With one task the keys are plain ("auc"), with several "task/auc".
        group: name of the column that `groups_B` comes from; without it there is no `gauc`.
        auc_bins: None for the exact AUC, or the number of bins, evenly spaced over logits from -16 to 16.
        device: where the state is kept. `update` does not wait for the GPU if that is where the logits are. With a
            process group, the backend of this device is used (gloo on CPU, NCCL on CUDA).

    Raises:
        ValueError: from `compute`, on every rank, for a label that is not from 0 to 1, or a weight below 0 or not
            finite.

    >>> metrics = Metrics(["click"], group="user")
    >>> logits_BK = torch.tensor([[2.0], [-1.0], [0.5], [0.5], [9.0]])
    >>> labels_BK = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0]])
    >>> weights_B = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])  # the last row is padding
    >>> metrics.update(logits_BK, labels_BK, weights_B, groups_B=torch.tensor([7, 7, 8, 8, 0]))
    >>> values = metrics.compute()
    >>> values["auc"], values["gauc"], round(values["logloss"], 4), values["rows"]
    (0.875, 0.75, 0.4721, 4.0)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        group: str | None = None,
        auc_bins: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if auc_bins is not None and auc_bins < 2:
            raise ValueError(f"auc_bins is {auc_bins}: give 2 bins or more, or nothing for the exact AUC")
        self.tasks = list(tasks)
        self.group = group
        self.auc_bins = auc_bins
        self.device = torch.device(device)
        num_tasks = len(self.tasks)
        self._sums_KS = torch.zeros(num_tasks, len(SUMS), dtype=torch.float64, device=self.device)
        num_bins = auc_bins or 0
        self._bins_KC2 = torch.zeros(
            num_tasks, num_bins, 2, dtype=torch.float64, device=self.device
        )  # negative, positive
        # Per batch: logits, and weights with the sign of the label (+ for 1, - for 0), each float32 of shape (B, K).
        self._batches: list[tuple[Tensor, Tensor]] = []
        # Per batch: groups, and which rows have one, each of shape (B,).
        self._groups: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(
        self,
        logits_BK: Tensor,
        labels_BK: Tensor,
        weights_B: Tensor,
        groups_B: Tensor | None = None,
        grouped_B: Tensor | None = None,
    ) -> None:
        """Add a batch. Local: no communication, and no waiting for the device.

        Args:
            logits_BK: one a task.
            labels_BK: 0 or 1.
            weights_B: 0 for rows that count nowhere.
            groups_B: int64, the group of every row; needed with a `group`.
            grouped_B: bool, False for a row that has no group, such as one whose user is null; None: all have one.

        Raises:
            ValueError: `groups_B` is missing though the metrics were made with a group.
        """
        if self.group is not None and groups_B is None:
            raise ValueError(
                f"GAUC by {self.group!r} needs groups_B, the value of that column in every row, found None"
            )
        assert logits_BK.shape == labels_BK.shape == (len(weights_B), len(self.tasks))
        weights_B1 = weights_B.to(self.device, torch.float32).unsqueeze(1)
        counted_B1 = weights_B1 != 0
        # where() also copies, so that the caller may reuse its tensors.
        logits_BK = torch.where(counted_B1, logits_BK.to(self.device, torch.float32), 0.0)
        labels_BK = torch.where(counted_B1, labels_BK.to(self.device, torch.float32), 0.0)
        positive_BK = labels_BK != 0
        grouped_B = torch.ones_like(weights_B, dtype=torch.bool) if grouped_B is None else grouped_B
        grouped_B = grouped_B.to(self.device, copy=True)
        self._add_sums(logits_BK.double(), labels_BK, positive_BK, weights_B1.double(), ~grouped_B.unsqueeze(1))
        hard_BK = (labels_BK == 0) | (labels_BK == 1)
        signed_BK = torch.where(hard_BK, torch.where(positive_BK, weights_B1, -weights_B1), 0.0)
        if self.auc_bins is not None:
            self._add_bins(logits_BK, signed_BK)
        if self.auc_bins is None or self.group is not None:
            self._batches.append((logits_BK, signed_BK))
        if self.group is not None and groups_B is not None:
            self._groups.append((groups_B.to(self.device, torch.int64, copy=True), grouped_B))

    def _add_sums(
        self, logits_BK: Tensor, labels_BK: Tensor, positive_BK: Tensor, weights_B1: Tensor, ungrouped_B1: Tensor
    ) -> None:
        # log p(label) without forming p: exact for large logits, infinite for an infinite one on the wrong side.
        loss_BK = -torch.nn.functional.logsigmoid(torch.where(positive_BK, logits_BK, -logits_BK))
        soft_BK = (labels_BK > 0) & (labels_BK < 1)
        labels_BK = labels_BK.double()
        other_BK = -torch.nn.functional.logsigmoid(-logits_BK)
        loss_BK = torch.where(soft_BK, labels_BK * loss_BK + (1 - labels_BK) * other_BK, loss_BK)
        bad_weights_B1 = ~((weights_B1 >= 0) & weights_B1.isfinite())
        columns = (
            loss_BK * weights_B1,
            logits_BK.sigmoid() * weights_B1,
            labels_BK * weights_B1,
            weights_B1.expand_as(logits_BK),
            (weights_B1 != 0).expand_as(logits_BK),
            ~((labels_BK >= 0) & (labels_BK <= 1)),
            soft_BK,
            bad_weights_B1.expand_as(logits_BK),
            (ungrouped_B1 * weights_B1).expand_as(logits_BK),
        )
        self._sums_KS += torch.stack([column_BK.sum(0, dtype=torch.float64) for column_BK in columns], dim=1)

    def _add_bins(self, logits_BK: Tensor, signed_BK: Tensor) -> None:
        num_tasks, num_bins, _ = self._bins_KC2.shape
        scaled_BK = (logits_BK.nan_to_num() + LOGIT_LIMIT) * (num_bins / (2 * LOGIT_LIMIT))
        task_K = torch.arange(num_tasks, device=self.device)
        cell_BK = (task_K * num_bins + scaled_BK.clamp(0, num_bins - 1).long()) * 2 + (signed_BK > 0)
        self._bins_KC2.view(-1).index_add_(0, cell_BK.flatten(), signed_BK.abs().double().flatten())

    def add(self, other: Metrics) -> None:
        """Take over the rows of `other`, which has the same tasks, group and bins."""
        self._sums_KS += other._sums_KS
        self._bins_KC2 += other._bins_KC2
        self._batches += other._batches
        self._groups += other._groups

    @torch.no_grad()
    def compute(self, group: ProcessGroup | None = None) -> dict[str, float]:
        """The metrics over the rows of all ranks; every rank of `group` must call it, and gets the same floats.

        `group` is the default process group when it is None and torch.distributed is initialised. A rank without
        rows takes part like any other. Calling it again, or updating further, is fine.
        """
        if group is None and dist.is_initialized():
            group = dist.group.WORLD
        sums_KS = all_sum(self._sums_KS.clone(), group)
        self._refuse_bad_rows(sums_KS)
        rankings = [dict[str, float]() for _ in self.tasks]
        if self.auc_bins is None:
            for task_k, ranking in enumerate(rankings):
                ranking["auc"] = exact_auc(*self._rows(task_k), group)
        else:
            for ranking, bins_C2 in zip(rankings, all_sum(self._bins_KC2.clone(), group), strict=True):
                ranking["auc"], ranking["auc_error_bound"] = histogram_auc(bins_C2)
        if self.group is not None:
            empty_N = torch.empty(0, dtype=torch.int64, device=self.device)
            group_N = torch.cat([empty_N, *(groups_B for groups_B, _ in self._groups)])
            grouped_N = torch.cat([empty_N.bool(), *(grouped_B for _, grouped_B in self._groups)])
            group_N = group_N[grouped_N]
            route = route_by_group(group_N, group)
            group_N = route(group_N)
            for task_k, ranking in enumerate(rankings):
                score_N, weight_N = (column_N[grouped_N] for column_N in self._rows(task_k))
                ranking["gauc"] = grouped_auc(route(score_N), route(weight_N), group_N, group)
        values: dict[str, float] = {}
        for task, ranking, sums_S in zip(self.tasks, rankings, sums_KS, strict=True):
            sums = dict(zip(SUMS, sums_S.tolist(), strict=True))
            if math.isnan(sums["loss"]):
                ranking = dict.fromkeys(ranking, math.nan)
            prefix = f"{task}/" if len(self.tasks) > 1 else ""
            values |= {prefix + name: value for name, value in (ranking | _pointwise(sums)).items()}
            if sums["soft_labels"]:
                values[f"{prefix}soft_labels"] = sums["soft_labels"]
        shared = {name: float(sums_KS[0, SUMS.index(name)]) for name in ("rows", "weight", "ungrouped")}
        if self.group is not None:
            values["ungrouped"] = _divide(shared["ungrouped"], shared["weight"])
        values |= {name: shared[name] for name in ("rows", "weight")}
        return _of_first_rank(values, self.device, group)

    def _rows(self, task_k: int) -> tuple[Tensor, Tensor]:
        """Logits and signed weights of all local rows for one task."""
        empty_N = torch.empty(0, device=self.device)
        score_N = torch.cat([empty_N, *(logits_BK[:, task_k] for logits_BK, _ in self._batches)])
        return score_N, torch.cat([empty_N, *(signed_BK[:, task_k] for _, signed_BK in self._batches)])

    def _refuse_bad_rows(self, sums_KS: Tensor) -> None:
        # The sums are those of all ranks: all of them raise.
        for task, sums_S in zip(self.tasks, sums_KS.tolist(), strict=True):
            sums = dict(zip(SUMS, sums_S, strict=True))
            if sums["bad_labels"]:
                raise ValueError(
                    f"{sums['bad_labels']:.0f} labels of task {task!r} are not from 0 to 1: found others, or NaN"
                )
            if sums["bad_weights"]:
                raise ValueError(f"{sums['bad_weights']:.0f} weights are negative or not finite, expected 0 or more")


def score(metrics: Mapping[str, float | None], select: str, tasks: Sequence[str]) -> float:
    """A metric as a number of which more is better: the mean over tasks; nan if it is not defined for one of them.

    >>> score({"click/ne": 0.5, "buy/ne": 0.75}, "ne", ["click", "buy"])
    -0.625
    """
    keys = [select] if len(tasks) == 1 else [f"{task}/{select}" for task in tasks]
    values = [metrics.get(key) for key in keys]
    mean = sum(math.nan if value is None else value for value in values) / len(keys)
    return -mean if select in LOWER_IS_BETTER else mean


def _pointwise(sums: dict[str, float]) -> dict[str, float]:
    """The metrics that follow from sums over the rows of one task."""
    logloss = _divide(sums["loss"], sums["weight"])
    mean_label = _divide(sums["positive"], sums["weight"])
    entropy = -sum(p * math.log(p) for p in (mean_label, 1 - mean_label) if p != 0)
    return {
        "logloss": logloss,
        "ne": _divide(logloss, entropy),
        "calibration": _divide(sums["prediction"], sums["positive"]),
    }


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _of_first_rank(values: dict[str, float], device: torch.device, group: ProcessGroup | None) -> dict[str, float]:
    """Rank 0's values on every rank: a reduction may round differently from rank to rank."""
    if group is None:
        return values
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.broadcast(packed, group=group, group_src=0)
    return dict(zip(values, packed.tolist(), strict=True))
