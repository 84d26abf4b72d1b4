"""The schema's tables as collections of torchrec's, and their pooled embeddings in schema order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedTensor

from rankmixer.embeddings.managed_tables import managed_collection
from rankmixer.pipeline.schema.schema import IdList, Schema, Table

DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


def embedding_tables(schema: Schema, dtypes: dict[str, str] | None = None) -> list[nn.Module]:
    """The tables on the meta device: DistributedModelParallel allocates the shards.

    An EmbeddingBagCollection, and a ManagedCollisionEmbeddingBagCollection of the managed tables, which takes no
    others; either is left out if it would be empty.

    Every table sums. TorchRec 1.8 divides for the mean after a row-wise lookup, and then divides every other feature
    that is not row-wise by its length too (docs/decisions/0002): `ConcatenateByName` takes the mean instead.

    Args:
        schema: the feature schema; dims may differ by table.
        dtypes: table name -> `fp32` (default) or `fp16`.

    Raises:
        ValueError: no feature has a table.
    """
    if not schema.tables:
        raise ValueError(
            f"the feature schema has no table: its features {list(schema.features)} are all dense numbers; "
            "give one of them boundaries and a dim, or add an id feature"
        )
    dtypes = dtypes or {}
    collections: list[nn.Module] = []
    for managed in (False, True):
        configs = [
            _table_config(table, dtypes.get(table.name, "fp32"))
            for table in schema.tables.values()
            if table.managed == managed
        ]
        if configs:
            bags = EmbeddingBagCollection(configs, is_weighted=schema.is_weighted, device=torch.device("meta"))
            collections.append(managed_collection(bags) if managed else bags)
    return collections


def _table_config(table: Table, dtype: str) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=table.name,
        embedding_dim=table.dim,
        num_embeddings=table.rows,
        feature_names=list(table.features),
        pooling=PoolingType.SUM,
        data_type=DATA_TYPES[dtype],
    )


class FeatureEmbeddings(nn.Module):
    """Every feature of a batch as one vector, ordered by semantic group.

    The key order of a sharded EmbeddingBagCollection depends on the plan, so embeddings are selected by name.

    Args:
        schema: names the order.
        tables: of `embedding_tables`, sharded or not.
    """

    def __init__(self, schema: Schema, tables: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embedding_bags: nn.Module | None = None
        self.managed: nn.Module | None = None
        for collection in tables:
            if isinstance(collection, EmbeddingBagCollection):
                self.embedding_bags = collection
            else:
                self.managed = collection
        self.concatenate = ConcatenateByName(schema)

    @property
    def in_widths(self) -> list[int]:
        """Width of each semantic group; they sum to I."""
        return self.concatenate.group_widths

    def forward(self, sparse: KeyedJaggedTensor, dense_BF: torch.Tensor) -> torch.Tensor:
        """Return x_BI: for each group in order, its pooled embeddings and its numbers."""
        pooled = []
        if self.embedding_bags is not None:
            pooled.append(self.embedding_bags(sparse))
        if self.managed is not None:
            pooled.append(self.managed(sparse)[0])
        return self.concatenate(pooled, sparse, dense_BF)


class ConcatenateByName(nn.Module):
    """Pooled embeddings, taken by name, and the numbers of dense_BF, joined in schema order.

    Features pooled by `mean` are divided here: by the number of ids, or by the sum of their weights if they have any;
    an empty list is zero.

    A module of its own because the train pipeline traces only what lies above a table: this is a leaf to it.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        dims = {feature: table.dim for table in schema.tables.values() for feature in table.features}
        order = [name for names in schema.groups.values() for name in names]
        self.mean_features = [
            name for table in schema.tables.values() if table.pooling == "mean" for name in table.features
        ]
        self.weighted = {
            name for name, feature in schema.features.items() if isinstance(feature, IdList) and feature.weights
        }
        dense_column = {name: column for column, name in enumerate(schema.dense_features)}
        self.group_widths = [sum(dims.get(name, 1) for name in names) for names in schema.groups.values()]
        # A feature's name, or the columns of dense_BF that follow one another.
        self.parts: list[str | slice] = []
        for is_dense, names in groupby(order, key=lambda name: name in dense_column):
            if is_dense:
                columns = [dense_column[name] for name in names]
                assert columns == list(range(columns[0], columns[-1] + 1)), "dense_features is not in group order"
                self.parts.append(slice(columns[0], columns[-1] + 1))
            else:
                self.parts += names

    def forward(self, pooled: list[KeyedTensor], sparse: KeyedJaggedTensor, dense_BF: torch.Tensor) -> torch.Tensor:
        """Return x_BI in the dtype of dense_BF.

        Args:
            pooled: the sums of each collection's tables, keys in any order.
            sparse: what was looked up.
            dense_BF: the numbers.
        """
        embedding_by_name = {name: sums for tensor in pooled for name, sums in tensor.to_dict().items()}
        for name in self.mean_features:
            embedding_by_name[name] = embedding_by_name[name] / self._total(sparse, name)
        parts = [embedding_by_name[part] if isinstance(part, str) else dense_BF[:, part] for part in self.parts]
        return torch.cat([part.to(dense_BF.dtype) for part in parts], dim=1)

    def _total(self, sparse: KeyedJaggedTensor, name: str) -> torch.Tensor:
        lengths_B = sparse.lengths().view(-1, sparse.stride())[sparse.keys().index(name)]
        if name not in self.weighted:
            return lengths_B.clamp(min=1).unsqueeze(1)
        # Of their sizes: weights of both signs may cancel, and a mean is no larger than what it is of.
        weights_B = torch.segment_reduce(sparse[name].weights().abs(), "sum", lengths=lengths_B)
        return torch.where(weights_B == 0, 1.0, weights_B).unsqueeze(1)
