import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankmixer.pipeline.read.order import Part, Window, permutation, windows


def test_the_order_never_changes() -> None:
    # Golden: a run that is resumed after an upgrade of numpy must find its rows where they were.
    cut = windows([5, 3, 4, 6, 2], window_rows=11, seed=11, epoch=2, shuffle=True)
    assert cut == [Window(0, 0, 11, (0, 3)), Window(1, 11, 9, (1, 2, 4))]
    assert permutation(cut[0], seed=11, epoch=2, shuffle=True).tolist() == [8, 9, 6, 3, 4, 0, 5, 10, 2, 1, 7]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window_rows=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_windows_hold_every_row_group_once(
    sizes: list[int], window_rows: int, seed: int, epoch: int, shuffle: bool
) -> None:
    cut = windows(sizes, window_rows, seed, epoch, shuffle)
    assert [window.number for window in cut] == list(range(len(cut)))
    assert [window.start for window in cut] == [0, *np.cumsum([window.num_rows for window in cut])[:-1].tolist()]
    groups = [group for window in cut for group in window.row_groups]
    assert sorted(groups) == list(range(len(sizes)))
    assert groups == sorted(groups) or shuffle
    for window in cut:
        assert window.num_rows == sum(sizes[group] for group in window.row_groups)
        assert sorted(permutation(window, seed, epoch, shuffle).tolist()) == list(range(window.num_rows))
        if shuffle:
            assert 2 * window.num_rows >= min(window_rows, 2 * sum(sizes))
            assert window.num_rows <= window_rows + max(window_rows, *sizes)
        elif max(sizes[group] for group in window.row_groups) > 2 * window_rows:
            assert len(window.row_groups) == 1


def test_seed_epoch_and_window_all_matter() -> None:
    def order(seed: int, epoch: int, number: int) -> tuple[int, ...]:
        return tuple(permutation(Window(number, 0, 50, (0,)), seed, epoch, True).tolist())

    places = [(seed, epoch, number) for seed in (0, 1) for epoch in (0, 1) for number in (0, 1)]
    assert len({order(*place) for place in places}) == len(places)
    sizes = [1] * 50
    firsts = {windows(sizes, 1, seed, epoch, True)[0].row_groups for seed in range(4) for epoch in range(4)}
    assert len(firsts) > 8


@given(
    window=st.tuples(st.integers(0, 30), st.integers(1, 30)),
    row=st.integers(0, 40),
    rows=st.integers(0, 60),
    steps=st.integers(0, 9),
    local=st.integers(1, 5),
    world_size=st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_the_part_of_a_rank_is_that_of_the_definition(
    window: tuple[int, int], row: int, rows: int, steps: int, local: int, world_size: int
) -> None:
    start, stop = window[0], window[0] + window[1]
    size = local * world_size
    end = min(row + rows, row + steps * size)
    for rank in range(world_size):
        part = Part(row, end, steps, size, rank, world_size)
        of_step = [
            [p for p in range(row + step * size + rank * local, row + step * size + (rank + 1) * local) if p < end]
            for step in range(steps)
        ]
        assert [part.rows(step) for step in range(steps)] == [len(positions) for positions in of_step]
        expected = [position - start for positions in of_step for position in positions if start <= position < stop]
        found = [position for here in part.slices(start, stop) for position in range(here.start, here.stop)]
        assert found == expected
