import pytest
import torch
import torch.nn.functional as F

from rankmixer_head import TaskHeads

B, D, K = 5, 12, 3


@pytest.mark.parametrize("hidden", [(), (7,), (9, 4)])
def test_every_task_has_its_own_map(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    heads = TaskHeads(D, hidden, K).double()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    pooled_BD = torch.randn(B, D, dtype=torch.double, requires_grad=True)
    inputs = [pooled_BD, *heads.parameters()]

    layers = [tuple(layer.parameters()) for layer in heads.layers]
    columns = []
    for task in range(K):
        x = pooled_BD
        for index, (weight_KIO, bias_KO) in enumerate(layers):
            x = (F.gelu(x) if index else x) @ weight_KIO[task] + bias_KO[task]
        columns.append(x[:, 0])
    expected_BK = torch.stack(columns, dim=1)

    logits_BK = heads(pooled_BD)
    torch.testing.assert_close(logits_BK, expected_BK)
    upstream = torch.randn_like(expected_BK)
    for got, expected in zip(
        torch.autograd.grad(logits_BK, inputs, upstream),
        torch.autograd.grad(expected_BK, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match="num_tasks must be at least 1, found 0"):
        TaskHeads(D, (), 0)
