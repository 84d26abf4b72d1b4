"""TorchRec's own models in place of the RankMixer: what they compute, and the whole path with each of them."""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import ModelConfig, load_config
from rankmixer.launch.job.job import evaluate
from rankmixer.launch.job.rollback import Rollbacks
from rankmixer.launch.job.train import Training
from rankmixer.launch.model.build import build_ranker
from rankmixer.launch.model.torchrec_models import Crosses, DotProducts, FactorisedAndDeep, Fields, TorchrecModel
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.ranks.run_lock import RunLock
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.schema.schema import Schema
from tests.helpers.job import SCHEMA, Job
from tests.helpers.ranks import run_ranks

ARCHS = ["dlrm", "dcn", "deepfm", "mlp"]
B, D, K = 5, 12, 2
FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "id", "range": 9, "dim": D, "group": "user"},
    "age": {"kind": "number", "group": "user"},
    "city": {"kind": "id", "range": 8, "dim": D, "group": "user"},
    "tags": {"kind": "id_list", "range": 7, "dim": D, "group": "item"},
    "price": {"kind": "number", "group": "item"},
    "stars": {"kind": "number", "group": "item"},
}


def build(arch: str, numbers: bool) -> tuple[TorchrecModel, Tensor]:
    """A model whose every parameter counts, and an input for it."""
    features = {name: feature for name, feature in FEATURES.items() if numbers or feature["kind"] != "number"}
    schema = Schema.model_validate({"features": features, "labels": {"click": {}, "like": {}}})
    config = ModelConfig.model_validate({"arch": arch, "hidden": [7, 4], "cross_layers": 2, "cross_rank": 3})
    torch.manual_seed(1)
    model = TorchrecModel(config, schema)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.7)
    return model, torch.randn(B, 3 * D + (3 if numbers else 0))


def layers(x_BI: Tensor, module: nn.Module) -> Tensor:
    """Affine maps with ReLU behind each, the ones below `module` in order."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            x_BI = (x_BI @ layer.weight.T + layer.bias).clamp(min=0)
    return x_BI


def fields_of(fields: Fields, x_BI: Tensor) -> list[Tensor]:
    """The numbers' vector if there are numbers, then user, city, tags."""
    if fields.dense_arch is None:
        return [x_BI[:, :D], x_BI[:, D : 2 * D], x_BI[:, 2 * D :]]
    numbers_BN = x_BI[:, [D, 3 * D + 1, 3 * D + 2]]
    embeddings = [x_BI[:, :D], x_BI[:, D + 1 : 2 * D + 1], x_BI[:, 2 * D + 1 : 3 * D + 1]]
    return [layers(numbers_BN, fields.dense_arch), *embeddings]


def naive(model: TorchrecModel, x_BI: Tensor, numbers: bool) -> Tensor:
    """The interaction, pair by pair and layer by layer."""
    interaction = model.interaction
    if not isinstance(interaction, DotProducts | Crosses | FactorisedAndDeep):
        return x_BI
    fields = fields_of(interaction.fields, x_BI)
    everything_BI = torch.cat(fields, dim=1)
    handed_on = fields[:1] if numbers else []
    if isinstance(interaction, DotProducts):
        products = [(one * other).sum(1, keepdim=True) for one, other in combinations(fields, 2)]
        return torch.cat([*handed_on, *products], dim=1)
    if isinstance(interaction, FactorisedAndDeep):
        columns = everything_BI.unbind(1)
        pairs = [one * other for one, other in combinations(columns, 2)]
        factorised_B1 = torch.stack(pairs).sum(0).unsqueeze(1)
        return torch.cat([*handed_on, layers(everything_BI, interaction.deep), factorised_B1], dim=1)
    crossnet, crossed_BI = interaction.arch.crossnet, everything_BI
    for wide_IR, narrow_RI, bias_I in zip(crossnet.W_kernels, crossnet.V_kernels, crossnet.bias, strict=True):
        crossed_BI = everything_BI * (crossed_BI @ narrow_RI.T @ wide_IR.T + bias_I) + crossed_BI
    return crossed_BI


@pytest.mark.parametrize("numbers", [True, False], ids=["numbers", "no numbers"])
@pytest.mark.parametrize("arch", ARCHS)
def test_computes_what_its_equations_say(arch: str, numbers: bool) -> None:
    model, x_BI = build(arch, numbers)
    expected = layers(naive(model, x_BI, numbers), model.mlp) @ model.logits.weight.T + model.logits.bias
    torch.testing.assert_close(model(x_BI, torch.ones(B)), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (B, K)


@pytest.mark.parametrize("numbers", [True, False], ids=["numbers", "no numbers"])
@pytest.mark.parametrize("arch", ARCHS)
def test_flops_gradients_and_parameters(arch: str, numbers: bool) -> None:
    model, x_BI = build(arch, numbers)
    x_BI.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        logits_BK = model(x_BI)
    assert counter.get_total_flops() == B * model.flops_per_example()
    with FlopCounterMode(display=False) as counter:
        model(x_BI).square().sum().backward()
    assert counter.get_total_flops() == B * model.training_flops_per_example()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name
    assert x_BI.grad is not None
    assert (x_BI.grad != 0).any(0).all()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_BI), logits_BK)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x_BI).dtype == torch.float32


@pytest.mark.parametrize("arch", ARCHS)
def test_starts_from_the_seed_alone_whatever_was_in_memory(arch: str) -> None:
    model, x_BI = build(arch, numbers=True)
    schema = Schema.model_validate({"features": FEATURES, "labels": {"click": {}, "like": {}}})
    config = ModelConfig.model_validate({"arch": arch, "hidden": [7, 4], "cross_layers": 2, "cross_rank": 3})
    other = TorchrecModel(config, schema, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 10**12)
    for start in (model, other):
        torch.manual_seed(3)
        start.reset_parameters()
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.isfinite().all(), name
    assert torch.equal(model(x_BI), other(x_BI))


def test_a_parameter_without_a_rule_is_found() -> None:
    model, _ = build("mlp", numbers=True)
    model.gain = nn.Parameter(torch.ones(()))
    with pytest.raises(LookupError, match=r"gain has no rule in launch/model/torchrec_models.py"):
        model.reset_parameters()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.arch=dlrm"], r"model.arch = dlrm wants all tables of one dim, found dim 4: tags; dim 8: user, city; "),
        (["model.arch=deepfm"], r"give these features one dim in the feature schema, or use model.arch mlp, rankmixer"),
        (
            ["model.arch=dcn", "model.hidden=[]"],
            r"model: hidden must hold at least one width with arch dcn, found \[\]",
        ),
        (["model.arch=mlp", "optimizer.dense.kind=muon"], r"muon.* per-token matrices, and model.arch = mlp has none"),
        (
            ["model.arch=mlp", "model.moe={experts: 4}"],
            r"model: moe changes a RankMixer, and arch is mlp; leave moe out",
        ),
        (["model.arch=mlp", "model.ablation=no_skip"], r"model: ablation changes a RankMixer, and arch is mlp"),
        (["model.arch=dcnn"], r"model.arch: .*'dcn'.*found 'dcnn'"),
        (
            ["model.arch=dlrm", "feature_schema.features={user: {kind: id, range: 9, dim: 4}}"],
            r"model.arch = dlrm crosses features, and the schema has only \['user'\]; add a feature",
        ),
    ],
)
def test_what_they_cannot_take_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"feature_schema": SCHEMA, "data": {"train": "nowhere"}}, sort_keys=False))
    with pytest.raises(ValueError, match=message):
        load_config(str(path), overrides)
    load_config(str(path), ["model.arch=mlp"])


@pytest.mark.parametrize("arch", ARCHS)
def test_the_plan_shows_parameters_and_flops(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    overrides = [f"model={{arch: {arch}}}", "feature_schema.features.tags.dim=8"]
    assert main(["plan", "--config", str(job.config), "-j", "1x1", *overrides]) == 0
    printed = re.search(r"head: ([\d,]+) parameters, ([\d,]+) forward FLOPs", capsys.readouterr().out)
    assert printed
    head = build_ranker(load_config(str(job.config), overrides), torch.device("cpu")).head
    assert int(printed[1].replace(",", "")) == sum(parameter.numel() for parameter in head.parameters()) > 20_000
    assert int(printed[2].replace(",", "")) == head.flops_per_example() > 40_000


def train_all(rank: int, world_size: int, folder: str, config: str, overrides: list[str]) -> dict[str, Any]:
    """Train each on these ranks, and load its last checkpoint into a new model."""
    store = dist.FileStore(f"{folder}/messages", world_size)
    control = dist.new_group(backend="gloo")
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), control, store=store)
    results = {}
    for arch in ARCHS:
        run = load_config(config, [*overrides, f"model={{arch: {arch}}}", f"run.directory={folder}/{arch}"])
        with RunLock(run) as lock:
            training = Training(run, ranks, Rollbacks(run, ranks), lock)
            result = training.run()
            again = Training(run, ranks, Rollbacks(run, ranks), lock).built
        weights = {key: value for key, value in training.built.model.state_dict().items() if key.startswith("head.")}
        results[arch] = {
            "result": result,
            "again": evaluate(run, again, ranks, str(run.data.evaluate)).metrics,
            "flops": again.flops_per_example,
            "weights": {name: weight.clone() for name, weight in weights.items()},
            "resumed": {name: again.model.state_dict()[name].clone() for name in weights},
        }
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_trains_and_resumes_on_ranks(world_size: int, tmp_path: Path) -> None:
    job = Job(tmp_path)
    overrides = ["feature_schema.features.tags.dim=8", "train.epochs=8", "train.evaluate_every=null"]
    overrides += ["optimizer.dense.lr=0.01", "optimizer.sparse.lr=0.1"]
    ranks = run_ranks(world_size, train_all, tmp_path, str(job.folder), str(job.config), overrides)
    for arch in ARCHS:
        result = ranks[0][arch]
        losses = list(job.losses(arch).values())
        assert len(losses) == result["result"]["steps"] == 48
        assert sum(losses[-6:]) < 0.9 * sum(losses[:6]), arch
        assert result["result"]["click/auc"] > 0.75, arch
        assert result["again"] == {name: result["result"][name] for name in result["again"]}
        start = read_log(str(job.folder / arch))[0]
        assert start["flops_per_example"] == result["flops"]
        assert start["dense_parameters"] == sum(weight.numel() for weight in result["weights"].values())
        for name, weight in result["weights"].items():
            assert torch.equal(weight, result["resumed"][name]), f"{arch}: {name} after loading"
            assert all(torch.equal(weight, other[arch]["weights"][name]) for other in ranks), f"{arch}: {name} on ranks"
