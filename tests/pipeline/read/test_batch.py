from itertools import chain

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.jagged_tensor_validator import validate_keyed_jagged_tensor

from rankmixer.pipeline.encode.bags import Bags
from rankmixer.pipeline.read.batch import Batch, Block, assemble, without_the_rest

KEYS = ["user", "history", "city"]
# user: one id a row. history: lists with weights. city: at most one id a row.
USER = [[10], [11], [12], [13]]
HISTORY = [[1, 2], [], [3], [4, 5, 6]]
CITY = [[], [7], [8], []]
WEIGHTS = [[0.1, 0.2], [], [0.3], [0.4, 0.5, 0.6]]


def ragged(rows: list[list[int]]) -> Bags:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Bags(np.array([*chain(*rows)], np.int64), offsets)


def block() -> Block:
    return Block(
        bags=[Bags(np.array([*chain(*USER)])), ragged(HISTORY), ragged(CITY)],
        bag_weights=[None, np.array([*chain(*WEIGHTS)], np.float32), None],
        dense_FN=np.arange(8, dtype=np.float32).reshape(2, 4),
        labels_KN=np.array([[0, 1, 0, 1]], np.float32),
        weights_N=np.array([1, 2, 3, 4], np.float32),
        keys=pa.table({"session": ["a", "b", "c", "d"]}),
    )


def rows_of(batch: Batch, key: str) -> list[list[int]]:
    jagged = batch.sparse[key]
    return [row.tolist() for row in jagged.to_dense()]


def test_pieces_follow_each_other_and_padding_ends_them() -> None:
    # Rows 2 and 3 of one block, then row 0 of another; five examples wanted.
    batch = assemble(KEYS, [(block(), 2, 4), (block(), 0, 1)], size=5, weighted=True)
    assert validate_keyed_jagged_tensor(batch.sparse)
    assert batch.sparse.keys() == KEYS
    assert batch.sparse.stride() == 5
    assert rows_of(batch, "user") == [[12], [13], [10], [], []]
    assert rows_of(batch, "history") == [[3], [4, 5, 6], [1, 2], [], []]
    assert rows_of(batch, "city") == [[8], [], [], [], []]
    weights = torch.tensor([1, 1, 1, 0.3, 0.4, 0.5, 0.6, 0.1, 0.2, 1])
    torch.testing.assert_close(batch.sparse.weights(), weights)
    assert batch.dense_BF.tolist() == [[2, 6], [3, 7], [0, 4], [0, 0], [0, 0]]
    assert batch.labels_BK.tolist() == [[0], [1], [0], [0], [0]]
    assert batch.weights_B.tolist() == [3, 4, 1, 0, 0]
    assert batch.keys is not None
    assert batch.keys["session"].to_pylist() == ["c", "d", "a"]


def test_the_smaller_part_of_a_block_goes_on_without_the_rest() -> None:
    whole = block()
    for start, stop in ((2, 4), (1, 2), (3, 4), (2, 2)):
        piece = without_the_rest(whole, start, stop)
        assert len(piece[0]) == stop - start
        for array in (piece[0].dense_FN, piece[0].weights_N, piece[0].bags[0].values, piece[0].bags[1].values):
            assert not any(np.shares_memory(array, other) for other in (whole.dense_FN, whole.weights_N))
            assert not any(np.shares_memory(array, bags.values) for bags in whole.bags)
        found, expected = (assemble(KEYS, [some], size=2, weighted=True) for some in (piece, (whole, start, stop)))
        for name in ("values", "lengths", "weights"):
            assert getattr(found.sparse, name)().tolist() == getattr(expected.sparse, name)().tolist()
        for name in ("dense_BF", "labels_BK", "weights_B"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()
        assert found.keys == expected.keys
    assert without_the_rest(whole, 1, 4) == (whole, 1, 4)  # the greater part: copying it would gain little


def test_types_and_counts_are_what_torchrec_wants() -> None:
    batch = assemble(KEYS, [(block(), 0, 3)], size=3, weighted=False)
    assert batch.sparse.values().dtype == torch.int64
    assert batch.sparse.lengths().dtype == torch.int32
    assert batch.sparse.weights_or_none() is None
    assert {tensor.dtype for tensor in (batch.dense_BF, batch.labels_BK, batch.weights_B)} == {torch.float32}
    counts = batch.sparse.lengths().view(len(KEYS), 3).sum(dim=1).tolist()
    assert batch.sparse.length_per_key() == counts == [3, 3, 2]
    assert batch.dense_BF.is_contiguous()


def test_a_batch_does_not_share_memory_with_its_block() -> None:
    source = block()
    batch = assemble(KEYS, [(source, 0, 4)], size=4, weighted=False)
    for tensor in (batch.sparse.values(), batch.dense_BF, batch.labels_BK, batch.weights_B):
        tensor.fill_(99)
    assert source.bags[0].values.tolist() == [10, 11, 12, 13]
    assert source.dense_FN[0].tolist() == [0, 1, 2, 3]


def test_all_padding() -> None:
    batch = assemble(KEYS, [(block(), 1, 1)], size=2, weighted=True)
    assert validate_keyed_jagged_tensor(batch.sparse)
    assert batch.sparse.lengths().tolist() == [0] * 6
    assert batch.weight_sum == 0
    assert torch.isfinite(batch.loss_scale)
    assert batch.keys is not None
    assert batch.keys.num_rows == 0


def test_without_sparse_features() -> None:
    source = block()
    bare = Block([], [], source.dense_FN, source.labels_KN, source.weights_N, None)
    batch = assemble([], [(bare, 1, 3)], size=2, weighted=False)
    assert batch.sparse.keys() == []
    assert batch.dense_BF.tolist() == [[1, 5], [2, 6]]
    assert batch.keys is None
    assert batch.to(torch.device("cpu")).sparse.stride() == 2


def test_the_loss_scale_makes_a_weighted_mean_unless_it_is_given() -> None:
    sparse = KeyedJaggedTensor.from_lengths_sync(["a"], torch.tensor([1, 2]), torch.tensor([1, 1], dtype=torch.int32))
    tensors = (sparse, torch.zeros(2, 3), torch.zeros(2, 1), torch.tensor([0.5, 1.5]))
    batch = Batch(*tensors)
    assert batch.weight_sum == 2.0
    assert batch.loss_scale.item() == 0.5
    given = Batch(*tensors, loss_scale=torch.tensor(0.25))
    moved = given.to(torch.device("cpu"), non_blocking=True)
    assert moved.loss_scale.item() == 0.25
    assert moved.sparse.values().tolist() == [1, 2]


def test_a_batch_moves_as_a_whole() -> None:
    batch = assemble(KEYS, [(block(), 0, 2)], size=2, weighted=True)
    moved = batch.to(torch.device("meta"))
    tensors = (moved.sparse.values(), moved.sparse.lengths(), moved.dense_BF, moved.labels_BK, moved.weights_B)
    assert {tensor.device.type for tensor in (*tensors, moved.loss_scale)} == {"meta"}
    assert moved.keys is batch.keys
    assert batch.dense_BF.device.type == "cpu"
