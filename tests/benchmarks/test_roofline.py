import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import Part, parts, product_rate, roofline
from rankmixer_head import RankMixer, RankMixerConfig

CONFIG = RankMixerConfig(tokens=4, width=12, layers=3, expansion=2.5)
B, I = 7, 16  # noqa: E741


def test_parts_do_the_products_of_the_head() -> None:
    head = RankMixer(CONFIG, [I], num_tasks=1)
    flops = sum(part.count * part.flops for part in parts(CONFIG, B, I))
    assert flops == B * (head.flops_per_example() - 2 * CONFIG.width)  # the task's map is not among them


def test_flops_of_every_part_are_those_that_torch_counts_forward_and_backward() -> None:
    for part in parts(CONFIG, B, I):
        inputs = [tensor.requires_grad_() for tensor in part.inputs]
        with FlopCounterMode(display=False) as counted:
            out = part.run(*inputs)
            assert counted.get_total_flops() == part.flops, part.name
            torch.autograd.grad(out, inputs, torch.ones_like(out))
        assert counted.get_total_flops() == 3 * part.flops, part.name


def test_a_part_is_bound_by_bytes_or_by_flops() -> None:
    add = Part("add", 2, 10, 100, 300, torch.add, ())
    assert add.bound(bandwidth=4.0, rate=1.0) == 2 * 100
    assert add.bound(bandwidth=400.0, rate=1.0) == 2 * 10
    assert add.bound(bandwidth=4.0, rate=1.0, training=True) == 2 * 300
    assert add.bound(bandwidth=400.0, rate=1.0, training=True) == 2 * 30


def test_rate_is_that_of_the_bare_products() -> None:
    found = parts(CONFIG, B, I)
    seconds = {part.name: [2.0, 4.0] for part in found}
    flops = B * 4 * CONFIG.layers * CONFIG.tokens * CONFIG.width * CONFIG.hidden
    assert product_rate(found, seconds, training=False) == flops / 4
    assert product_rate(found, seconds, training=True) == 3 * flops / 8


def test_table_has_every_part_their_sum_and_the_head() -> None:
    rows = roofline("tiny", CONFIG, B, I, head=(0.25, 0.5), repeats=1)
    assert [row["part"] for row in rows[-2:]] == ["sum", "head, measured"]
    total = sum(row["training, ms"] for row in rows[:-2])
    assert rows[-2]["training, ms"] == total
    assert rows[-1]["training, ms"] == 500
