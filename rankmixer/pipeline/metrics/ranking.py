"""AUC and GAUC as masses of ordered pairs, over the rows of all ranks, with each rank keeping its share of them.

The AUC is the mass of the pairs (positive, negative) in which the positive has the higher score, ties counted half,
over the mass of all such pairs. Rows are merged into runs of equal score first, so a tie needs no special case:

    pairs = sum over runs of  positive * (negative in lower runs + negative / 2)

N counts rows, R runs, G groups, W ranks, C histogram bins. `weight` tensors carry the label in their sign: a positive
row has its weight, a negative row minus its weight.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

SPLITTER_SAMPLES = 1024  # a rank's share in the exact AUC is even to about W / SPLITTER_SAMPLES


class Runs(NamedTuple):
    """Runs of rows with equal group and score, in ascending order of (group, score)."""

    score_R: Tensor
    positive_R: Tensor  # float64, the mass of the positive rows
    negative_R: Tensor  # float64
    group_R: Tensor | None = None


def exact_auc(score_N: Tensor, weight_N: Tensor, ranks: ProcessGroup | None = None) -> float:
    """The AUC over the rows of all ranks; nan when only one class is present.

    Each rank gets a range of scores: ranges are cut at quantiles of a sample, runs go to the rank of their range, and
    only each range's mass is gathered. Ties are merged before they are sent, so equal scores take no room.

    >>> exact_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    0.875
    """
    runs = merge_ties(score_N, weight_N.clamp(min=0), -weight_N.clamp(max=0))
    if ranks is not None:
        route = Route(torch.searchsorted(splitters(runs.score_R, ranks), runs.score_R, right=True), ranks)
        runs = merge_ties(route(runs.score_R), route(runs.positive_R), route(runs.negative_R))
    pairs_W, positive_W, negative_W = _all_gather(torch.cat(pair_mass(runs)), ranks).unbind(1)
    below_W = negative_W.cumsum(0) - negative_W
    return _ratio((pairs_W + positive_W * below_W).sum(), positive_W.sum() * negative_W.sum())


def histogram_auc(mass_C2: Tensor) -> tuple[float, float]:
    """The AUC of rows known by bin only, and how far at most it is from their exact AUC.

    `mass_C2` holds the negative and the positive mass of each bin, in ascending order of score. The pairs within a bin
    count half; were they all ordered, or all reversed, the AUC would move by half of their mass: that is the bound.

    >>> histogram_auc(torch.tensor([[6.0, 1.0], [2.0, 7.0]]))
    (0.8125, 0.15625)
    """
    negative_C, positive_C = mass_C2.double().unbind(1)
    pairs, positive, negative = pair_mass(Runs(torch.empty(0), positive_C, negative_C))
    return _ratio(pairs, positive * negative), _ratio((positive_C * negative_C).sum() / 2, positive * negative)


def grouped_auc(score_N: Tensor, weight_N: Tensor, group_N: Tensor, ranks: ProcessGroup | None = None) -> float:
    """The mean AUC of the groups with both classes, weighted by their mass; nan when there is none.

    All rows of a group must be on one rank (`Route` brings them there).

    >>> weight_N = torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0])
    >>> grouped_auc(torch.tensor([0.1, 0.4, 0.2, 0.8, 0.9]), weight_N, torch.tensor([5, 5, 3, 3, 4]))
    0.5
    """
    runs = merge_ties(score_N, weight_N.clamp(min=0), -weight_N.clamp(max=0), group_N)
    pairs_G, positive_G, negative_G = pair_mass(runs)
    possible_G = positive_G * negative_G
    mixed_G = possible_G > 0
    mass_G = (positive_G + negative_G) * mixed_G
    auc_G = torch.where(mixed_G, pairs_G / possible_G, 0.0)
    weighted, mass = all_sum(torch.stack([(auc_G * mass_G).sum(), mass_G.sum()]), ranks)
    return _ratio(weighted, mass)


def merge_ties(score_N: Tensor, positive_N: Tensor, negative_N: Tensor, group_N: Tensor | None = None) -> Runs:
    """Sort rows by (group, score) and add up the masses of those that share both."""
    score_N, order_N = score_N.sort()
    first_N = torch.ones_like(score_N, dtype=torch.bool)
    if group_N is not None:
        group_N, by_group_N = group_N[order_N].sort(stable=True)
        score_N, order_N = score_N[by_group_N], order_N[by_group_N]
        first_N[1:] = group_N[1:] != group_N[:-1]
        first_N[1:] |= score_N[1:] != score_N[:-1]
    else:
        first_N[1:] = score_N[1:] != score_N[:-1]
    run_N = first_N.cumsum(0) - 1
    score_R = score_N[first_N]
    positive_R = _sum_by(run_N, positive_N[order_N], len(score_R))
    negative_R = _sum_by(run_N, negative_N[order_N], len(score_R))
    return Runs(score_R, positive_R, negative_R, None if group_N is None else group_N[first_N])


def pair_mass(runs: Runs) -> tuple[Tensor, Tensor, Tensor]:
    """For each group (one, of all runs, when they have none): mass of ordered pairs, of positives, of negatives."""
    below_R = runs.negative_R.cumsum(0) - runs.negative_R
    if runs.group_R is None:
        pairs_R = runs.positive_R * (below_R + runs.negative_R / 2)
        return pairs_R.sum(0, keepdim=True), runs.positive_R.sum(0, keepdim=True), runs.negative_R.sum(0, keepdim=True)
    _, group_R, runs_G = runs.group_R.unique_consecutive(return_inverse=True, return_counts=True)
    below_R -= below_R[runs_G.cumsum(0) - runs_G][group_R]
    pairs_R = runs.positive_R * (below_R + runs.negative_R / 2)
    pairs_G, positive_G, negative_G = (
        _sum_by(group_R, values_R, len(runs_G)) for values_R in (pairs_R, runs.positive_R, runs.negative_R)
    )
    return pairs_G, positive_G, negative_G


class Route:
    """Sends every row to the rank that `destination_N` names. Collective; without a process group, the identity.

    Works for any number of rows on a rank, none included. The sizes are exchanged once, then each call moves one
    column: columns arrive in the same order, by source rank.
    """

    def __init__(self, destination_N: Tensor, ranks: ProcessGroup | None) -> None:
        self.ranks = ranks
        if ranks is None:
            return
        self.order_N = destination_N.argsort(stable=True)
        sent_W = destination_N.bincount(minlength=ranks.size())
        received_W = torch.empty_like(sent_W)
        dist.all_to_all_single(received_W, sent_W, group=ranks)
        self.sent, self.received = sent_W.tolist(), received_W.tolist()

    def __call__(self, column_N: Tensor) -> Tensor:
        if self.ranks is None:
            return column_N
        arrived_N = column_N.new_empty(sum(self.received))
        dist.all_to_all_single(arrived_N, column_N[self.order_N], self.received, self.sent, group=self.ranks)
        return arrived_N


def route_by_group(group_N: Tensor, ranks: ProcessGroup | None) -> Route:
    """The route that brings all rows of a group to one rank, groups spread by hash."""
    # Fibonacci hashing: the high half of the product, so that ids with a common factor spread evenly too.
    hash_N = group_N * -7046029254386353131 >> 32
    return Route(hash_N % (1 if ranks is None else ranks.size()), ranks)


def all_sum(values: Tensor, ranks: ProcessGroup | None) -> Tensor:
    """The sum of `values` over the ranks, in place."""
    if ranks is not None:
        dist.all_reduce(values, group=ranks)
    return values


def splitters(score_R: Tensor, ranks: ProcessGroup) -> Tensor:
    """W - 1 ascending scores that cut the runs of all ranks into about equal shares, the same on every rank."""
    sample_S = score_R.new_full((SPLITTER_SAMPLES,), math.nan)
    if len(score_R):
        sample_S = score_R[torch.linspace(0, len(score_R) - 1, SPLITTER_SAMPLES, device=score_R.device).long()]
    sample_WS = _all_gather(sample_S, ranks)
    sample_N = sample_WS[~sample_WS.isnan()].sort().values
    if len(sample_N) == 0:
        return sample_N
    return sample_N[torch.arange(1, ranks.size(), device=score_R.device) * len(sample_N) // ranks.size()]


def _all_gather(values_S: Tensor, ranks: ProcessGroup | None) -> Tensor:
    """The values of all ranks, in order, as (W, S)."""
    if ranks is None:
        return values_S[None]
    values_WS = [torch.empty_like(values_S) for _ in range(ranks.size())]
    dist.all_gather(values_WS, values_S, group=ranks)
    return torch.stack(values_WS)


def _sum_by(index_N: Tensor, values_N: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, device=values_N.device).index_add_(0, index_N, values_N.double())


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else math.nan
