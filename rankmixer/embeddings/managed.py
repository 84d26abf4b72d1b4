"""Rows for ids without bound: which id has which row of a managed table, and which gets one next."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrec.modules.mc_modules import ManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from rankmixer.pipeline.schema.schema import MANAGED_HASHES, SEGMENTS

FREE = -1  # in place of an id
MAP_BYTES = 5 * 8  # a row: five int64


def is_due(step: int) -> bool:
    """Whether waiting ids get rows in this step: each of the first 15, then ever fewer, from 1,024 on every 128th.

    >>> [step for step in range(1, 50) if is_due(step)][13:]
    [14, 15, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48]
    """
    return step % (1 << min(max(step.bit_length() - 4, 0), 7)) == 0


class ManagedRows(ManagedCollisionModule):
    """The map of one table, or of a rank's part of it.

    An id is a hash, 0 to MANAGED_HASHES - 1. The table is cut into `segments` of equally many rows, the hashes into as
    many equal ranges, and an id's row lies in the segment of its range. The last row of a segment is shared by all ids
    of its range that have none. A rank holds whole segments, so the map does not depend on the number of ranks.

    In training every step counts the ids it knows and lets the others wait; when `is_due`, those that wait compete with
    those that have rows. Score: occurrences / (steps since the last one + 1), torchrec's distance LFU; the lowest of a
    segment go, and of equal ones those stay that are there. In evaluation nothing changes.

    Args:
        table_rows: rows of the whole table.
        device: of the map.
        rows: first and last + 1 of those here; None: all.
        segments: of the whole table.

    >>> managed = ManagedRows(6, torch.device("cpu"), segments=2)  # rows 0, 1 and 3, 4 to give away, 2 and 5 shared
    >>> ids = torch.tensor([7, 2**62 + 5, 7, 9])
    >>> _ = managed.profile({"item": JaggedTensor(ids, lengths=torch.tensor([3, 1]))})
    >>> managed.rows_of(torch.cat([ids, torch.tensor([8, 2**63 - 2])]))
    tensor([0, 4, 0, 1, 2, 5])
    """

    id_N: Tensor
    count_N: Tensor
    seen_N: Tensor

    def __init__(
        self, table_rows: int, device: torch.device, rows: tuple[int, int] | None = None, segments: int = SEGMENTS
    ) -> None:
        self.segment_rows = table_rows // segments
        assert table_rows == segments * self.segment_rows, f"{table_rows} rows in {segments} segments"
        assert self.segment_rows > 1, f"{table_rows} rows in {segments} segments leave none to give away"
        super().__init__(device, [segment * self.segment_rows for segment in range(segments + 1)])
        self._table_rows, self._segments = table_rows, segments
        self._first_row, end = rows or (0, table_rows)
        assert self._first_row % self.segment_rows == end % self.segment_rows == 0, f"rows {rows} cut a segment"
        self._range = -(-MANAGED_HASHES // segments)  # as torchrec's input distribution, which sends ids to ranks
        size = end - self._first_row
        self.register_buffer("id_N", torch.full((size,), FREE, device=device))
        self.register_buffer("count_N", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("seen_N", torch.zeros(size, dtype=torch.int64, device=device))
        # What follows from id_N: the ids in order, and their rows.
        self.register_buffer("_sorted_id_N", self.id_N.clone(), persistent=False)
        self.register_buffer("_sorted_row_N", torch.arange(size, device=device), persistent=False)
        self._step = 0
        self._waiting: list[Tensor] = []
        self._given: list[Tensor] = []

    @property
    def waiting_3P(self) -> Tensor:
        """Ids that wait for a row, how often each occurred in a step, and in which."""
        return torch.cat(self._waiting, dim=1) if self._waiting else self.id_N.new_empty(3, 0)

    def wait_again(self, waiting_3P: Tensor) -> None:
        """Take over, after loading, the ids that waited on any ranks; those of other ranks' segments are left out."""
        segment_P = waiting_3P[0] // self._range - self._first_row // self.segment_rows
        self._waiting = [waiting_3P[:, (segment_P >= 0) & (segment_P < len(self.id_N) // self.segment_rows)]]

    @torch.no_grad()
    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Count the ids of a training step, and give out rows if it is time to."""
        if not self.training:
            return features
        self._step += 1
        self._current_iter_tensor += 1
        values = torch.cat([feature.values() for feature in features.values()])
        id_U, count_U = torch.unique(values, return_counts=True)
        row_U, has_row_U = self._find(id_U)
        rows = row_U[has_row_U]
        self.count_N[rows] += count_U[has_row_U]
        self.seen_N[rows] = self._step
        new_U, new_count_U = id_U[~has_row_U], count_U[~has_row_U]
        self._waiting.append(torch.stack([new_U, new_count_U, torch.full_like(new_U, self._step)]))
        if is_due(self._step):
            self._give_rows()
        return features

    def rows_of(self, values: Tensor) -> Tensor:
        """The row of each id, counted in the whole table: its own, or the one that its segment's others share."""
        row, has_row = self._find(values)
        return self._first_row + torch.where(has_row, row, self.shared_row(self._segment(values)))

    def shared_row(self, segment: Tensor) -> Tensor:
        """The row that the ids of a segment share who have none, both counted from the first here."""
        return (segment + 1) * self.segment_rows - 1

    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """The same features with rows in place of ids."""
        return {
            name: JaggedTensor(self.rows_of(old.values()), weights=old.weights_or_none(), lengths=old.lengths())
            for name, old in features.items()
        }

    def evict(self) -> Tensor | None:
        """The rows given out since the last call, counted in the whole table; None if there are none."""
        given, self._given = self._given, []
        return torch.cat(given).unique() + self._first_row if given else None

    def _segment(self, ids: Tensor) -> Tensor:
        return ids // self._range - self._first_row // self.segment_rows

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(self._sorted_id_N, ids).clamp_(max=len(self.id_N) - 1)
        return self._sorted_row_N[place], self._sorted_id_N[place] == ids

    def _give_rows(self) -> None:
        """R rows to give away a segment, S segments, U ids that wait, at most M of them in one segment."""
        waiting_3P = self.waiting_3P
        self._waiting = []
        if not waiting_3P.numel():
            return
        id_U, of_P = torch.unique(waiting_3P[0], return_inverse=True)
        count_U = torch.zeros_like(id_U).index_add_(0, of_P, waiting_3P[1])
        seen_U = torch.zeros_like(id_U).scatter_reduce_(0, of_P, waiting_3P[2], "amax")
        score_SR = self._score(self.count_N, self.seen_N).where(self.id_N != FREE, -1.0)
        score_SR = score_SR.view(-1, self.segment_rows)[:, :-1]
        segment_U = self._segment(id_U)
        number_S = torch.bincount(segment_U, minlength=len(score_SR))
        place_U = torch.arange(len(id_U), device=id_U.device) - (number_S.cumsum(0) - number_S)[segment_U]
        score_SM = score_SR.new_full((len(score_SR), int(number_S.max())), -2.0)
        score_SM[segment_U, place_U] = self._score(count_U, seen_U)
        order = torch.cat([score_SR, score_SM], dim=1).argsort(dim=1, descending=True, stable=True)
        num_rows = score_SR.shape[1]
        wins = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :num_rows], True)
        # In each segment as many lose their rows, or free rows, as there are ids that win one; both in segment order.
        segment, place = (~wins[:, :num_rows]).nonzero(as_tuple=True)
        rows = segment * self.segment_rows + place
        won_U = wins[:, num_rows:][segment_U, place_U]
        self.id_N[rows], self.count_N[rows], self.seen_N[rows] = id_U[won_U], count_U[won_U], seen_U[won_U]
        self._given.append(rows)
        self._sort()

    def _score(self, count: Tensor, seen: Tensor) -> Tensor:
        return count.double() / (self._step - seen + 1)

    def _sort(self) -> None:
        ids, rows = self.id_N.sort()
        self._sorted_id_N.copy_(ids)
        self._sorted_row_N.copy_(rows)

    # What else torchrec asks of a managed collision module.

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        return self.remap(self.profile(self.preprocess(features)))

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    def output_size(self) -> int:
        return len(self.id_N)

    def input_size(self) -> int:
        return MANAGED_HASHES

    def buckets(self) -> int:
        return self._segments

    def validate_state(self) -> None:
        """Called when a state has been loaded."""
        self._step = int(self._current_iter_tensor)
        self._waiting, self._given = [], []
        self._sort()

    def open_slots(self) -> Tensor:
        return (self.id_N == FREE).sum() - len(self.id_N) // self.segment_rows

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> ManagedRows:
        return ManagedRows(self._table_rows, device or self.device, output_id_range, self._segments)
