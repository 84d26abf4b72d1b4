"""Dense parts made of TorchRec's own modules: DLRM, DCN, DeepFM and an MLP, for comparison with ours."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import compress, groupby

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch, InteractionArch, InteractionDCNArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.deepfm import DeepFM, FactorizationMachine
from torchrec.modules.mlp import MLP

from rankmixer.launch.config.model import ModelConfig
from rankmixer.pipeline.schema.schema import Schema


class TorchrecModel(nn.Module):
    """x_BI -> interaction -> MLP -> logits_BK; to the Ranker the same as a RankMixer.

    `dlrm`, `dcn` and `deepfm` see the input as fields of one width (see Fields); `mlp` takes it as it is.
    The last layers are those of TorchRec's OverArch with one output a task. DeepFM has its MLP beside the interaction,
    not behind it.

    Args:
        config: which model, and its sizes.
        schema: what x_BI is made of.
        device: of the parameters, "meta" included.
    """

    def __init__(self, config: ModelConfig, schema: Schema, device: torch.device | str | None = None) -> None:
        super().__init__()
        # Not all of TorchRec's modules take a device.
        with torch.device(device) if device is not None else nullcontext():
            self.interaction = _INTERACTIONS[config.arch](config, schema)
            width, hidden = self.interaction.out_width, [] if config.arch == "deepfm" else config.hidden
            self.mlp = MLP(width, hidden)
            self.logits = nn.Linear(hidden[-1] if hidden else width, len(schema.tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start all weights anew, by the rules below."""
        _initialise(self)

    def forward(self, x_BI: Tensor, weight_B: Tensor | None = None) -> Tensor:
        """Logits of the tasks, float32 under autocast too, where rounding would make ties.

        Args:
            x_BI: the embeddings and numbers of each example, in schema order.
            weight_B: of the examples; of no use here, a Sparse-MoE needs it.
        """
        x_BO = self.mlp(self.interaction(x_BI))
        device = x_BO.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return self.logits(x_BO.to(self.logits.weight.dtype))

    def flops_per_example(self) -> int:
        """FLOPs of the matrix products of one example's forward."""
        # Every matrix meets every example once.
        matrices = sum(parameter.numel() for parameter in self.parameters() if parameter.dim() == 2)
        return 2 * (matrices + getattr(self.interaction, "products_per_example", 0))

    def training_flops_per_example(self) -> int:
        """FLOPs of the matrix products of one example's forward and backward in training.

        Three times the forward: every product has two gradients, for the input is made of tables, which learn.
        """
        return 3 * self.flops_per_example()


class Fields(nn.Module):
    """x_BI as F vectors of one width D: one that a DenseArch makes of all numbers, and the embeddings.

    TorchRec's interactions take the numbers' vector apart from the others. Without numbers, as in MovieLens, the first
    embedding takes its place.

    Args:
        hidden: hidden widths of the DenseArch.
        schema: whose tables have one dim.
    """

    def __init__(self, hidden: list[int], schema: Schema) -> None:
        super().__init__()
        dims = {feature: table.dim for table in schema.tables.values() for feature in table.features}
        assert len(set(dims.values())) == 1, f"tables of dims {dims}: Config refuses them"
        (self.dim,) = set(dims.values())
        order = [name for names in schema.groups.values() for name in names]
        # Neighbouring columns of one kind: whether they are embeddings, and how many.
        runs = [(kind, list(names)) for kind, names in groupby(order, key=lambda name: name in dims)]
        self.are_embeddings = [kind for kind, _ in runs]
        self.widths = [sum(dims.get(name, 1) for name in names) for _, names in runs]
        numbers = len(schema.dense_features)
        self.dense_arch = DenseArch(numbers, [*hidden, self.dim]) if numbers else None
        self.others = len(dims) - (self.dense_arch is None)

    def forward(self, x_BI: Tensor) -> tuple[Tensor, Tensor]:
        """Return first_BD and others_BFD."""
        pieces = x_BI.split(self.widths, dim=1)
        embeddings_BFD = torch.cat(list(compress(pieces, self.are_embeddings)), dim=1).unflatten(1, (-1, self.dim))
        if self.dense_arch is None:
            return embeddings_BFD[:, 0], embeddings_BFD[:, 1:]
        numbers = compress(pieces, [not are_embeddings for are_embeddings in self.are_embeddings])
        return self.dense_arch(torch.cat(list(numbers), dim=1)), embeddings_BFD


class DotProducts(nn.Module):
    """DLRM (arXiv 1906.00091): the dot product of every two fields, and the numbers' vector if there is one.

    Without numbers that is the products of the embeddings alone: none of them is handed on.
    """

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        self.fields = Fields(config.hidden, schema)
        self.arch = InteractionArch(self.fields.others)
        pairs = self.fields.others * (self.fields.others + 1) // 2
        self.handed_on = 0 if self.fields.dense_arch is None else self.fields.dim
        self.out_width = self.handed_on + pairs
        # TorchRec multiplies all fields with all, and takes the upper triangle.
        self.products_per_example = (self.fields.others + 1) ** 2 * self.fields.dim

    def forward(self, x_BI: Tensor) -> Tensor:
        first_BD, others_BFD = self.fields(x_BI)
        return self.arch(first_BD, others_BFD)[:, self.fields.dim - self.handed_on :]


class Crosses(nn.Module):
    """DCN-v2 (arXiv 2008.13535) as in TorchRec's DLRM_DCN: a low-rank cross net over all fields."""

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        self.fields = Fields(config.hidden, schema)
        self.out_width = (self.fields.others + 1) * self.fields.dim
        crossnet = LowRankCrossNet(self.out_width, config.cross_layers, config.cross_rank)
        self.arch = InteractionDCNArch(self.fields.others, crossnet)

    def forward(self, x_BI: Tensor) -> Tensor:
        return self.arch(*self.fields(x_BI))


class FactorisedAndDeep(nn.Module):
    """DeepFM as TorchRec has it: the numbers' vector if there is one, an MLP over all fields, and one FM value.

    That value is the sum of x_i x_j over all pairs of columns: unlike in the paper (arXiv 1703.04247) it also pairs
    different columns of two embeddings, and two columns of one. One affine map makes the logits of all of it, so the
    tasks share the value, each with a weight of its own.
    """

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        self.fields = Fields(config.hidden, schema)
        self.deep = DeepFM(MLP((self.fields.others + 1) * self.fields.dim, config.hidden))
        self.factorised = FactorizationMachine()
        self.handed_on = 0 if self.fields.dense_arch is None else self.fields.dim
        self.out_width = self.handed_on + config.hidden[-1] + 1

    def forward(self, x_BI: Tensor) -> Tensor:
        fields = first_BD, _ = self.fields(x_BI)
        return torch.cat([first_BD[:, : self.handed_on], self.deep(fields), self.factorised(fields)], dim=1)


class Unchanged(nn.Module):
    """The input as it is, for the MLP."""

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        tables = schema.tables.values()
        self.out_width = len(schema.dense_features) + sum(table.dim * len(table.features) for table in tables)

    def forward(self, x_BI: Tensor) -> Tensor:
        return x_BI


_INTERACTIONS: dict[str, type[DotProducts | Crosses | FactorisedAndDeep | Unchanged]] = {
    "dlrm": DotProducts,
    "dcn": Crosses,
    "deepfm": FactorisedAndDeep,
    "mlp": Unchanged,
}


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Fill every parameter and buffer below `model` as TorchRec's constructors do; on the meta device, nothing happens.

    Most of those modules cannot be reset: what `to_empty` has left in them would stay, in the indices of
    InteractionArch too.

    Raises:
        LookupError: a parameter or buffer has no rule.
    """
    filled: set[Tensor] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
            filled |= {module.weight, module.bias}
        elif isinstance(module, LowRankCrossNet):
            for matrix in (*module.W_kernels, *module.V_kernels):
                nn.init.xavier_normal_(matrix)
            for bias in module.bias:
                nn.init.zeros_(bias)
            filled |= set(module.parameters())
        elif isinstance(module, InteractionArch):
            module.triu_indices.copy_(torch.triu_indices(module.F + 1, module.F + 1, offset=1))
            filled.add(module.triu_indices)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor not in filled:
            raise LookupError(f"{name} has no rule in launch/model/torchrec_models.py: add one")
