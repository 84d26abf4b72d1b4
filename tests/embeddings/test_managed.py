"""Which id of a managed table has which row: against a naive twin, in parts, through saving, and in evaluation."""

import math
from itertools import pairwise

import pytest
import torch
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from rankmixer.embeddings.managed import FREE, ManagedRows, is_due
from rankmixer.pipeline.schema.schema import MANAGED_HASHES

CPU = torch.device("cpu")
SEGMENTS, SEGMENT_ROWS = 4, 6
RANGE = math.ceil(MANAGED_HASHES / SEGMENTS)


def some_ids(count: int, seed: int) -> list[int]:
    """Different hashes all over their range, its ends among them."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(MANAGED_HASHES, (count - 2,), generator=generator).tolist()
    return [0, MANAGED_HASHES - 1, *inner]


def stream(steps: int, seed: int = 0, distinct: int = 60, size: int = 9) -> list[list[int]]:
    """Ids of every step; small numbers are far more frequent, and step 5 has none."""
    ids, generator = some_ids(distinct, seed), torch.Generator().manual_seed(seed)
    draws = (torch.rand(steps, size, generator=generator) ** 3 * distinct).long().tolist()
    return [[ids[i] for i in row] if step != 5 else [] for step, row in enumerate(draws, 1)]


def features(ids: list[int]) -> dict[str, JaggedTensor]:
    return {"item": JaggedTensor(torch.tensor(ids, dtype=torch.int64), lengths=torch.tensor([len(ids)]))}


def train(managed: ManagedRows, steps: list[list[int]]) -> None:
    for ids in steps:
        managed(features(ids))


class Naive:
    """The rules of ManagedRows, id by id."""

    def __init__(self) -> None:
        # Of (id, count, seen); () is free.
        self.rows: list[list[tuple[int, ...]]] = [[()] * (SEGMENT_ROWS - 1) for _ in range(SEGMENTS)]
        self.waiting: dict[int, list[int]] = {}
        self.step = 0

    def place(self, id_: int) -> tuple[int, int]:
        segment = id_ // RANGE
        places = [place for place, entry in enumerate(self.rows[segment]) if entry and entry[0] == id_]
        return segment, places[0] if places else SEGMENT_ROWS - 1

    def score(self, count: int, seen: int) -> float:
        return count / (self.step - seen + 1)

    def train(self, ids: list[int]) -> None:
        self.step += 1
        for id_ in ids:
            segment, place = self.place(id_)
            if place < SEGMENT_ROWS - 1:
                self.rows[segment][place] = (id_, self.rows[segment][place][1] + 1, self.step)
            else:
                self.waiting[id_] = [self.waiting.get(id_, [0])[0] + 1, self.step]
        if is_due(self.step):
            for segment, rows in enumerate(self.rows):
                new = [(id_, *self.waiting[id_]) for id_ in sorted(self.waiting) if id_ // RANGE == segment]
                scores = [self.score(*entry[1:]) if entry else -1.0 for entry in rows]
                scores += [self.score(*entry[1:]) for entry in new]
                best = sorted(range(len(scores)), key=lambda index: -scores[index])[: len(rows)]  # stable
                winners = [entry for index, entry in enumerate(new) if len(rows) + index in best]
                losers = [place for place in range(len(rows)) if place not in best]
                for place, entry in zip(losers, winners, strict=True):
                    rows[place] = entry
            self.waiting = {}


def test_the_map_is_that_of_a_naive_twin_step_by_step() -> None:
    managed, naive = ManagedRows(SEGMENTS * SEGMENT_ROWS, CPU, segments=SEGMENTS), Naive()
    steps = stream(70)
    distinct = sorted({id_ for ids in steps for id_ in ids})
    assert len(distinct) > 2 * SEGMENTS * (SEGMENT_ROWS - 1), "more ids than rows"
    evicted = 0
    for ids in steps:
        before = set(managed.id_N.tolist()) - {FREE}
        rows = managed(features(ids))["item"].values()
        naive.train(ids)
        evicted += len(before - set(managed.id_N.tolist()))
        expected = [segment * SEGMENT_ROWS + place for segment, place in map(naive.place, distinct)]
        assert managed.rows_of(torch.tensor(distinct)).tolist() == expected
        assert torch.equal(rows, managed.rows_of(torch.tensor(ids, dtype=torch.int64)))
        table = [entry or (FREE, 0, 0) for entries in naive.rows for entry in [*entries, ()]]
        found = torch.stack([managed.id_N, managed.count_N, managed.seen_N], dim=1).tolist()
        assert found == [list(entry) for entry in table]
    assert evicted > 10
    assert managed.open_slots() == 0


def test_two_halves_are_the_whole() -> None:
    size = SEGMENTS * SEGMENT_ROWS
    whole = ManagedRows(size, CPU, segments=SEGMENTS)
    halves = [whole.rebuild_with_output_id_range(rows, []) for rows in ((0, size // 2), (size // 2, size))]
    assert [half.output_size() for half in halves] == [12, 12]
    for ids in stream(45):
        rows = dict(zip(ids, whole(features(ids))["item"].values().tolist(), strict=True))
        for number, half in enumerate(halves):
            own = [id_ for id_ in ids if id_ // RANGE // 2 == number]
            assert half(features(own))["item"].values().tolist() == [rows[id_] for id_ in own]
    for name in ("id_N", "count_N", "seen_N"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name)), name
    given = [half.evict() for half in halves]
    expected = whole.evict()
    assert expected is not None
    assert torch.equal(torch.cat([rows for rows in given if rows is not None]), expected)
    assert whole.evict() is None


def test_evaluation_changes_nothing() -> None:
    managed = ManagedRows(SEGMENTS * SEGMENT_ROWS, CPU, segments=SEGMENTS)
    train(managed, stream(17))
    before = {name: value.clone() for name, value in managed.state_dict().items()}
    waiting_3P = managed.waiting_3P
    assert waiting_3P.numel()
    managed.eval()
    unseen = torch.tensor(some_ids(9, seed=1)[2:])
    for _ in range(20):
        rows = managed(features(unseen.tolist()))["item"].values()
    assert rows.tolist() == [(id_ // RANGE + 1) * SEGMENT_ROWS - 1 for id_ in unseen.tolist()]  # the shared ones
    for name, value in managed.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(managed.waiting_3P, waiting_3P)


def test_a_state_saved_while_ids_wait_goes_on_as_if_nothing_had_been() -> None:
    size, steps = SEGMENTS * SEGMENT_ROWS, stream(60)
    undisturbed = ManagedRows(size, CPU, segments=SEGMENTS)
    train(undisturbed, steps[:41])
    state = {name: value.clone() for name, value in undisturbed.state_dict().items()}
    waiting_3P = undisturbed.waiting_3P
    assert waiting_3P.numel()
    train(undisturbed, steps[41:])

    resumed = ManagedRows(size, CPU, segments=SEGMENTS)
    resumed.load_state_dict(state)
    resumed.wait_again(waiting_3P)
    train(resumed, steps[41:])
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    # A rank takes over its own segments' ids of whatever ranks there were.
    half = undisturbed.rebuild_with_output_id_range((0, size // 2), [])
    half.wait_again(waiting_3P)
    assert half.waiting_3P[0].tolist() == [id_ for id_ in waiting_3P[0].tolist() if id_ < 2 * RANGE]


def test_rows_are_given_out_often_at_first_and_at_most_every_128th_step() -> None:
    due = [step for step in range(1, 5000) if is_due(step)]
    assert due[:15] == list(range(1, 16))
    assert max(b - a for a, b in pairwise(due)) == 128
    assert all(8 * (b - a) <= max(a, 8) for a, b in pairwise(due))


@pytest.mark.parametrize("empty_first", [False, True])
def test_after_an_empty_first_batch_torchrecs_own_module_gives_no_id_a_row(empty_first: bool) -> None:
    """It sizes its history by the first batch. One of the reasons why the map is ours (docs/decisions/0011)."""
    policy = DistanceLFU_EvictionPolicy()
    module = MCHManagedCollisionModule(zch_size=8, device=CPU, eviction_policy=policy, eviction_interval=1)
    start: list[list[int]] = [[]] if empty_first else []
    for ids in [*start, [3, 4], [3, 4], [3, 4]]:
        rows = module(features(ids))["item"].values().tolist()
    assert (rows == [7, 7]) == empty_first  # 7 is the row of ids without one

    managed = ManagedRows(8, CPU, segments=1)
    train(managed, [*start, [3, 4]])
    assert 7 not in managed.rows_of(torch.tensor([3, 4])).tolist()


def test_torchrecs_own_module_cannot_be_cut_for_more_ranks() -> None:
    """Another reason: ids of the first half of the hashes may have rows in the second half of the table."""
    whole = MCHManagedCollisionModule(8, CPU, DistanceLFU_EvictionPolicy(), eviction_interval=1)
    half = whole.rebuild_with_output_id_range((0, 4), output_segments=[0, 4, 8])
    half._output_segments_tensor = whole._output_segments_tensor  # as loaded
    with pytest.raises(AssertionError, match=r"shard within range \[0, 4\] cannot be built"):
        half.validate_state()
