import torch

from rankmixer_head import mix_tokens
from rankmixer_head.mixing import mix_and_add

B, T, C = 5, 4, 3
D = T * C


def test_slice_h_of_token_t_becomes_slice_t_of_token_h() -> None:
    """Every entry carries where it came from: token, example, slice, place in the slice."""
    tags_TBD = torch.empty(T, B, D)
    for t in range(T):
        for b in range(B):
            for column in range(D):
                tags_TBD[t, b, column] = 1000 * t + 100 * b + 10 * (column // C) + column % C
    mixed_TBD = mix_tokens(tags_TBD)
    for h in range(T):
        for b in range(B):
            for t in range(T):
                expected = [1000 * t + 100 * b + 10 * h + place for place in range(C)]
                assert mixed_TBD[h, b, t * C : (t + 1) * C].tolist() == expected


def test_mixing_twice_returns_the_input() -> None:
    x_TBD = torch.randn(T, B, D)
    assert torch.equal(mix_tokens(mix_tokens(x_TBD)), x_TBD)
    assert not torch.equal(mix_tokens(x_TBD), x_TBD)


def test_mixing_with_residual_equals_the_sum_forward_and_backward() -> None:
    x_TBD = torch.randn(T, B, D, requires_grad=True)
    upstream = torch.randn(T, B, D)
    torch.testing.assert_close(mix_and_add(x_TBD), mix_tokens(x_TBD) + x_TBD, rtol=0, atol=0)
    (got,) = torch.autograd.grad(mix_and_add(x_TBD), x_TBD, upstream)
    (expected,) = torch.autograd.grad(mix_tokens(x_TBD) + x_TBD, x_TBD, upstream)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert mix_and_add(x_TBD).is_contiguous()
    assert got.is_contiguous()
