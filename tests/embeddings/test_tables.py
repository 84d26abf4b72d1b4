from typing import Any

import pytest
import torch
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from rankmixer.embeddings.tables import ConcatenateByName, FeatureEmbeddings, embedding_tables
from rankmixer.pipeline.schema.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "features": {
            "user": {"kind": "id", "range": 5, "dim": 8, "group": "user"},
            "price": {"kind": "number", "group": "item"},
            "item": {"kind": "id", "range": 7, "dim": 4, "group": "item"},
            "age": {"kind": "number", "group": "user"},
            "stock": {"kind": "number", "group": "item"},
            "tags": {"kind": "id_list", "range": 7, "dim": 4, "table": "item", "pooling": "sum", "group": "item"},
        },
        "labels": {"click": {}},
    }
)


def test_concatenation_is_by_name_and_in_group_order() -> None:
    concatenate = ConcatenateByName(SCHEMA)
    assert concatenate.group_widths == [8 + 1, 1 + 4 + 1 + 4]
    blocks = {"user": torch.full((2, 8), 1.0), "item": torch.full((2, 4), 2.0), "tags": torch.full((2, 4), 3.0)}
    dense_BF = torch.tensor([[10.0, 20.0, 30.0], [11.0, 21.0, 31.0]])  # age, price, stock: group order
    assert SCHEMA.dense_features == ["age", "price", "stock"]
    expected = torch.tensor([1.0] * 8 + [10.0] + [20.0] + [2.0] * 4 + [30.0] + [3.0] * 4)
    for order in (["user", "item", "tags"], ["tags", "user", "item"]):  # as two plans would return them
        pooled = KeyedTensor(
            keys=order,
            length_per_key=[blocks[name].shape[1] for name in order],
            values=torch.cat([blocks[name] for name in order], dim=1),
        )
        torch.testing.assert_close(concatenate([pooled], KeyedJaggedTensor.empty(), dense_BF)[0], expected)


def test_shared_tables_and_pooling() -> None:
    [collection] = embedding_tables(SCHEMA)
    assert isinstance(collection, EmbeddingBagCollection)
    collection.to_empty(device="cpu")
    for table in collection.parameters():
        torch.nn.init.normal_(table)
    embeddings = FeatureEmbeddings(SCHEMA, [collection])
    sparse = KeyedJaggedTensor(
        keys=SCHEMA.sparse_features,
        values=torch.tensor([4, 0, 3, 6, 1, 2, 5]),
        lengths=torch.tensor([1, 1, 1, 1, 0, 3], dtype=torch.int32),
    )
    x_BI = embeddings(sparse, torch.zeros(2, 3))
    item = collection.embedding_bags["item"].weight
    assert x_BI.shape == (2, sum(embeddings.in_widths))
    torch.testing.assert_close(x_BI[0, 10:14], item[3])
    torch.testing.assert_close(x_BI[0, 15:19], torch.zeros(4))  # an empty list
    torch.testing.assert_close(x_BI[1, 15:19], item[[1, 2, 5]].sum(0))


def test_means_and_weighted_means_are_those_of_a_naive_loop() -> None:
    features: dict[str, Any] = {
        "a": {"kind": "id_list", "range": 9, "dim": 4, "pooling": "mean"},
        "b": {"kind": "id_list", "range": 9, "dim": 8, "pooling": "mean", "weights": "w"},
        "c": {"kind": "id_list", "range": 9, "dim": 4, "pooling": "sum"},
    }
    schema = Schema.model_validate({"features": features, "labels": {"click": {}}})
    [collection] = embedding_tables(schema)
    assert isinstance(collection, EmbeddingBagCollection)
    collection.to_empty(device="cpu")
    for table in collection.parameters():
        torch.nn.init.normal_(table)
    lists = {"a": [[1, 2], [], [3], []], "b": [[], [4, 5], [6], [1, 2, 3]], "c": [[7, 8], [7], [], []]}
    weights = {
        "a": [[1.0, 1.0], [], [1.0], []],
        "b": [[], [0.5, 2.0], [0.0], [0.7, -0.3, -0.4]],
        "c": [[1.0, 1.0], [1.0], [], []],
    }
    sparse = KeyedJaggedTensor(
        keys=list(lists),
        values=torch.tensor([i for rows in lists.values() for row in rows for i in row]),
        weights=torch.tensor([w for rows in weights.values() for row in rows for w in row]),
        lengths=torch.tensor([len(row) for rows in lists.values() for row in rows], dtype=torch.int32),
    )
    x_BI = FeatureEmbeddings(schema, [collection])(sparse, torch.zeros(4, 0))
    for row in range(4):
        expected = []
        for name, feature in features.items():
            table = collection.embedding_bags[name].weight
            pairs = list(zip(lists[name][row], weights[name][row], strict=True))
            total = sum((w * table[i] for i, w in pairs), torch.zeros(feature["dim"]))
            mean = feature["pooling"] == "mean"
            expected.append(total / (sum(abs(w) for _, w in pairs) or 1.0) if mean else total)
        torch.testing.assert_close(x_BI[row], torch.cat(expected))


def test_a_schema_without_tables_is_refused() -> None:
    schema = Schema.model_validate({"features": {"price": {"kind": "number"}}, "labels": {"click": {}}})
    with pytest.raises(ValueError, match=r"no table: its features \['price'\] are all dense numbers"):
        embedding_tables(schema)
