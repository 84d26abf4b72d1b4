"""Token parallelism equals one process: outputs, gradients, weights, statistics; and sends what it is said to send."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from benchmarks.token_parallel.collectives import Collectives
from rankmixer_head import MoEConfig, RankMixer, RankMixerConfig
from rankmixer_head.config import check_token_group
from rankmixer_head.token_parallel import shard_tokens
from tests.helpers.ranks import run_ranks
from tests.helpers.token_group import CONFIGS, G, I, K, Training, batch, build, fifty_losses, token_mesh, trained

LONG = ["plain", "moe_dtsi_split"]
GROUPS = [(1, 1), (1, 2), (2, 2), (1, 4), (2, 4), (4, 4)]
COMPILED = {"tokenmixer_large_per_group": 2, "moe_recompute": 2, "plain": 4}  # in groups of two of so many ranks


def all_checks(rank: int, world_size: int) -> dict[str, Any]:
    """What one rank finds: {what: ...}, for all sizes of token groups that fit."""
    found: dict[str, Any] = {}
    for ranks in [P for P, W in GROUPS if world_size == W]:
        for variant in CONFIGS:
            for optimizer in optimizers(variant):
                found[f"{variant} {optimizer} {ranks}"] = trained(variant, ranks, optimizer)
        for variant in LONG:
            found[f"{variant} losses {ranks}"] = fifty_losses(variant, ranks)
        if ranks > 1:
            found[f"collectives {ranks}"] = {variant: collectives(variant, ranks) for variant in CONFIGS}
            found[f"owned {ranks}"] = owned(ranks)
            found[f"drawn {ranks}"] = drawn(ranks)
            found[f"bfloat16 {ranks}"] = in_bfloat16(ranks)
            found[f"accumulated {ranks}"] = accumulated(ranks)
            found[f"revived {ranks}"] = revived(ranks)
            found[f"uneven {ranks}"] = uneven(ranks)
            found[f"autocast {ranks}"] = under_autocast(ranks)
    found["compiled"] = {variant: compiled(variant) for variant, W in COMPILED.items() if world_size == W}
    return found


def optimizers(variant: str) -> list[str]:
    """SGD hides no factor on a gradient; AdamW has state."""
    return ["sgd", "adamw"] if variant in ("plain", "moe_dtsi") else ["sgd"]


def collectives(variant: str, ranks: int) -> dict[str, Any]:
    training = Training(build(variant, torch.float32), ranks)
    x_BI, _, weight_B = training.rows(0)
    x_BI.requires_grad_()
    with Collectives() as forward:
        loss = training.head(x_BI, weight_B).sum()
    with Collectives() as backward:
        loss.backward()
    group = training.head.token_group.process_group.group_name  # type: ignore[union-attr]
    in_group = [[bytes for _, name, bytes in mode.seen if name == group] for mode in (forward, backward)]
    tokenizer = training.head.tokenizer
    return {
        "kinds": {name for name, _, _ in forward.seen},
        "elsewhere": len(forward.seen) - len(in_group[0]),
        "forward": in_group[0],
        "backward": in_group[1],
        "sum_d": sum(tokenizer.cut_widths),
    }


def owned(ranks: int) -> list[tuple[str, int, int]]:
    """Every (layer, token, expert) of which this rank holds the weights, read from the weights themselves."""
    head = build("moe_single")
    for moe in head.moes:
        T, E = moe.load_TE.shape
        moe.up_TEMD.data.copy_(torch.arange(T * E).view(T, E, 1, 1).expand_as(moe.up_TEMD))
    shard_tokens(head, token_mesh(ranks))
    ids = [(layer, id) for layer, moe in enumerate(head.moes) for id in moe.up_TEMD[:, :, 0, 0].flatten().tolist()]
    return [(f"layer {layer}", int(id) // E, int(id) % E) for layer, id in ids]


def drawn(ranks: int) -> bool:
    """Does a head on the meta device start as it would on one process?"""
    heads = []
    for device in ("cpu", "meta"):
        for variant in ("moe_dtsi", "tokenmixer_large_per_group"):
            config = CONFIGS[variant]
            groups = config.tokens - config.global_token
            torch.manual_seed(13)
            head = RankMixer(config, [1] * (groups - 1) + [19 - groups], num_tasks=K, device=device)
            torch.manual_seed(14)
            if device == "cpu":
                head.reset_parameters()
            heads.append(Training(head, ranks).whole())
    return all(torch.equal(a[name], b[name]) for a, b in ((heads[0], heads[2]), (heads[1], heads[3])) for name in a)


def in_bfloat16(ranks: int) -> dict[str, Any]:
    training = Training(build("moe_single", torch.float32), ranks, dtype=torch.bfloat16)
    x_BI, _, weight_B = training.rows(0)
    _, weight_N = training.head.enter(x_BI, weight_B)
    training.loss(0).backward()
    return {"logits": training.logits(), "weight": weight_N, "gradients": training.whole("gradients")}


def under_autocast(ranks: int) -> torch.Tensor:
    training = Training(build("tokenmixer_large_per_group", torch.float32), ranks)
    with torch.autocast("cpu", torch.bfloat16):
        return training.logits()


def accumulated(ranks: int) -> dict[str, Any]:
    """Gradients of two micro-batches added up, token-sharded ones."""
    training = Training(build("plain"), ranks)
    training.loss(0).backward()
    training.loss(1).backward()
    return training.whole("gradients")


def revived(ranks: int) -> dict[str, Any]:
    """One expert of each token shut by its router's bias: when it opens again, and the statistics then."""
    head = build("moe_single")
    for moe in head.moes:
        moe.router_TDE.data[:, :, 1] = 0.0
        moe.router_bias_TE.data[:, 1] = -0.05 * (1 + torch.arange(4))
        moe.load_TE[:, 1] = 0.0  # as after long being shut
    training = Training(head, ranks)
    opened: dict[str, int] = {}
    for step in range(1, 41):
        training.step(step % 4)
        for layer, moe in enumerate(head.moes):
            for token in range(4):
                if moe.load_TE[token, 1] > 0:
                    opened.setdefault(f"layer {layer} token {token}", step)
    buffers = {name: buffer.clone() for name, buffer in head.named_buffers() if "load" in name}
    return {"opened": opened, "weights": training.whole(), "buffers": buffers}


def uneven(ranks: int) -> dict[str, Any]:
    """Batches of one size, then of another on the last rank, then of one size again."""
    head = build("plain")
    shard_tokens(head, token_mesh(ranks))
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    outcomes: dict[str, Any] = {}
    for name, size in (("before", 3), ("uneven", 3 - (rank == world - 1)), ("after", 2)):
        try:
            outcomes[name] = len(head(torch.zeros(size, I, dtype=torch.float64)))
        except ValueError as error:
            outcomes[name] = str(error)
    return outcomes


def compiled(variant: str) -> float:
    """Largest difference between gradients, eager and compiled in one graph."""
    torch._dynamo.reset()
    eager, in_one_graph = (Training(build(variant), 2) for _ in range(2))
    in_one_graph.head.compile(fullgraph=True, backend="aot_eager")
    for training in (eager, in_one_graph):
        training.loss(0).backward()
    difference = (eager.logits() - in_one_graph.logits()).abs().max().item()
    gradients = in_one_graph.whole("gradients")
    return max(
        difference, *((grad - gradients[name]).abs().max().item() for name, grad in eager.whole("gradients").items())
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return {W: run_ranks(W, all_checks, tmp_path_factory.mktemp(str(W))) for W in (1, 2, 4)}


def assert_equal(got: Any, expected: Any, what: str) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        difference = (got[name] - expected[name]).abs().max().item()
        assert torch.allclose(got[name], expected[name], rtol=1e-9, atol=1e-11), (
            f"{what} {name} differs by {difference}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "optimizer"), [(name, kind) for name in CONFIGS for kind in optimizers(name)])
def test_equals_one_process(ranks: dict[int, list[dict[str, Any]]], variant: str, optimizer: str) -> None:
    expected = trained(variant, 1, optimizer)
    for P, W in GROUPS:
        for rank in range(W):
            got = ranks[W][rank][f"{variant} {optimizer} {P}"]
            what = f"P = {P}, W = {W}, rank {rank}:"
            assert got["losses"] == pytest.approx(expected["losses"], rel=1e-10), what
            torch.testing.assert_close(got["logits"], expected["logits"], rtol=1e-9, atol=1e-11)
            for kind in ("gradients", "weights", "buffers"):
                assert_equal(got[kind], expected[kind], what)
            assert got["flops"] == expected["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", LONG)
def test_fifty_steps_in_float32_lose_the_same(ranks: dict[int, list[dict[str, Any]]], variant: str) -> None:
    expected = fifty_losses(variant, 1)
    assert sum(expected[-4:]) < 0.98 * sum(expected[:4])
    for P, W in GROUPS:
        assert ranks[W][0][f"{variant} losses {P}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("P", "W"), [(P, W) for P, W in GROUPS if P > 1])
def test_every_expert_of_every_token_is_on_one_rank_of_a_group(
    ranks: dict[int, list[dict[str, Any]]], P: int, W: int
) -> None:
    everything = [(f"layer {layer}", t, e) for layer in range(2) for t in range(4) for e in range(6)]
    for replica in range(W // P):
        shards = [ranks[W][replica * P + p][f"owned {P}"] for p in range(P)]
        assert [len(shard) for shard in shards] == [len(everything) // P] * P
        assert sorted(pair for shard in shards for pair in shard) == everything


@pytest.mark.slow
@pytest.mark.parametrize("variant", CONFIGS)
def test_collectives_and_bytes_are_those_of_the_formula(ranks: dict[int, list[dict[str, Any]]], variant: str) -> None:
    config = CONFIGS[variant]
    T, D, L = config.tokens, config.width, config.layers
    is_large, is_split = config.block == "tokenmixer_large", config.moe is not None
    mixings = 0 if config.ablation == "no_mixing" else (1 + is_large) * L
    paths = 1 + variant.endswith("dtsi")
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        B = G // W
        found = [ranks[W][rank][f"collectives {P}"][variant] for rank in range(W)]
        for one in found:
            assert one["kinds"] == {"c10d::alltoall_base_"}
            assert one["elsewhere"] == 0
            assert len(one["forward"]) == mixings + 2
            assert len(one["backward"]) == len(one["forward"]) + mixings * config.recompute
        sent = sum(sum(one["forward"]) for one in found) / W
        weights = is_split * 4 * (P - 1) * B
        formula = 4 * (P - 1) / P * B * (found[0]["sum_d"] + paths * mixings * T * D) + paths * 4 * (P - 1) * B * D
        assert sent == formula + weights


@pytest.mark.slow
def test_a_head_on_the_meta_device_is_drawn_in_shards(ranks: dict[int, list[dict[str, Any]]]) -> None:
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        assert all(found[f"drawn {P}"] for found in ranks[W])


@pytest.mark.slow
def test_bfloat16_on_the_wire_rounds_activations_and_no_weight(ranks: dict[int, list[dict[str, Any]]]) -> None:
    single = Training(build("moe_single", torch.float32), 1)
    single.loss(0).backward()
    logits, gradients = single.logits(), single.whole("gradients")
    _, _, weight_G = batch(0, torch.float32)
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        for rank in range(W):
            got = ranks[W][rank][f"bfloat16 {P}"]
            error = ((got["logits"] - logits).norm() / logits.norm()).item()
            assert 1e-6 < error < 5e-3
            replica = weight_G * W / weight_G.sum()
            assert torch.equal(got["weight"], replica.view(W // P, -1)[rank // P])
            for name, gradient in gradients.items():
                torch.testing.assert_close(
                    got["gradients"][name], gradient, rtol=0.05, atol=0.05 * gradient.abs().max().item()
                )


@pytest.mark.slow
def test_autocast_rounds_as_on_one_process(ranks: dict[int, list[dict[str, Any]]]) -> None:
    expected = under_autocast(1)
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        assert ranks[W][0][f"autocast {P}"].dtype == torch.float32
        torch.testing.assert_close(ranks[W][0][f"autocast {P}"], expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_gradients_of_micro_batches_add_up(ranks: dict[int, list[dict[str, Any]]]) -> None:
    expected = accumulated(1)
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        assert_equal(ranks[W][0][f"accumulated {P}"], expected, f"P = {P}, W = {W}:")


@pytest.mark.slow
def test_experts_that_are_shut_come_back_as_on_one_process(ranks: dict[int, list[dict[str, Any]]]) -> None:
    expected = revived(1)
    steps = [[expected["opened"][f"layer {layer} token {token}"] for token in range(4)] for layer in range(2)]
    for layer in steps:
        assert 1 < layer[0] < layer[1] < layer[2] < layer[3], "the deeper it was shut, the later it opens"
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        for rank in range(W):
            got = ranks[W][rank][f"revived {P}"]
            assert got["opened"] == expected["opened"]
            for kind in ("weights", "buffers"):
                assert_equal(got[kind], expected[kind], f"P = {P}, W = {W}, rank {rank}:")


@pytest.mark.slow
def test_batches_of_different_sizes_are_refused_by_the_whole_group(ranks: dict[int, list[dict[str, Any]]]) -> None:
    for P, W in ((P, W) for P, W in GROUPS if P > 1):
        for rank in range(W):
            found = ranks[W][rank][f"uneven {P}"]
            assert (found["before"], found["after"]) == (3, 2)
            if rank // P < W // P - 1:
                assert found["uneven"] == 3, "another group has nothing to do with it"
            else:
                sizes = ", ".join(f"{3 - (other == W - 1)} on rank {other}" for other in range(W - P, W))
                assert f"brought batches of different sizes: {sizes}; pad" in found["uneven"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPILED)
def test_compiled_in_one_graph_equals_eager(ranks: dict[int, list[dict[str, Any]]], variant: str) -> None:
    assert max(found["compiled"][variant] for found in ranks[COMPILED[variant]]) < 1e-12


@pytest.mark.parametrize("ablation", ["all_concat", "all_share", "self_attention"])
def test_what_reads_all_tokens_is_refused(ablation: Any) -> None:
    config = RankMixerConfig(tokens=4, width=16, layers=1, expansion=1, ablation=ablation)
    check_token_group(config, 1)
    with pytest.raises(ValueError, match=f"ablation = {ablation} reads all tokens at once.*; use a group of 1 rank"):
        check_token_group(config, 2)


def test_a_group_among_which_the_tokens_cannot_be_shared_is_refused() -> None:
    config = RankMixerConfig(tokens=6, width=12, layers=1, expansion=1, moe=MoEConfig(2))
    for ranks in (1, 2, 3, 6):
        check_token_group(config, ranks)
    for ranks in (4, 12):
        with pytest.raises(ValueError, match=f"among the {ranks} ranks of a token group; groups of 1, 2, 3, 6 can"):
            check_token_group(config, ranks)


def refusal(module: nn.Module) -> str:
    with pytest.raises(ValueError, match="contains no RankMixer") as refused:
        shard_tokens(module, Mock(spec=DeviceMesh))
    return str(refused.value)


def test_a_model_without_a_rankmixer_is_refused() -> None:
    assert refusal(nn.Linear(2, 2)) == "Linear contains no RankMixer whose tokens could be shared"


def test_an_inner_module_of_a_rankmixer_is_told_so() -> None:
    head = build("plain", torch.float32)
    block = head.get_submodule("blocks.0")
    for part, names in (
        (head.tokenizer, "Tokenizer"),
        (block.get_submodule("ffn"), "PerTokenFFN"),
        (head.blocks, type(block).__name__),
        (nn.Sequential(block), type(block).__name__),
    ):
        said = refusal(part)
        assert said.startswith(f"{type(part).__name__} contains no RankMixer whose tokens could be shared, only parts")
        assert names in said
        assert said.endswith("; give the RankMixer, or what holds it")
