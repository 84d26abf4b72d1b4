import pytest
import torch

from rankmixer_head import RankMixerConfig, Tokenizer
from rankmixer_head.config import TokenizerKind

B, T, D = 7, 4, 12


def config(tokenizer: TokenizerKind) -> RankMixerConfig:
    return RankMixerConfig(tokens=T, width=D, layers=1, expansion=2, tokenizer=tokenizer)


def assert_equals_naive(tokenizer: Tokenizer, pieces: list[list[int]]) -> None:
    """Token t must be the affine map, by its rows of the weight, of input columns pieces[t]; gradients too."""
    torch.manual_seed(1)
    tokenizer = tokenizer.double()
    torch.nn.init.normal_(tokenizer.tokens_bias_TD)
    x_BI = torch.randn(B, tokenizer.in_width, dtype=torch.double, requires_grad=True)
    inputs = [x_BI, *tokenizer.parameters()]
    x_TBD = tokenizer(x_BI)

    naive = []
    for t, columns in enumerate(pieces):
        token_BD = tokenizer.tokens_bias_TD[t].expand(B, D)
        for index, column in enumerate(columns):
            token_BD = token_BD + x_BI[:, column, None] * tokenizer.tokens_ID[t * tokenizer.rows + index]
        naive.append(token_BD)
    naive_TBD = torch.stack(naive)

    torch.testing.assert_close(x_TBD, naive_TBD)
    upstream = torch.randn_like(naive_TBD)
    for got, expected in zip(
        torch.autograd.grad(x_TBD, inputs, upstream), torch.autograd.grad(naive_TBD, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("in_widths", [[17], [5, 9, 3], [20], [1]])
def test_slices_cut_the_concatenation_and_pad_its_tail(in_widths: list[int]) -> None:
    width = sum(in_widths)
    d = -(-width // T)
    pieces = [[column for column in range(t * d, (t + 1) * d) if column < width] for t in range(T)]
    tokenizer = Tokenizer(config("slices"), in_widths)
    assert tokenizer.tokens_ID.shape == (T * d, D)
    assert_equals_naive(tokenizer, pieces)


@pytest.mark.parametrize("in_widths", [[3, 8, 1, 5], [6, 6, 6, 6]])
def test_per_group_makes_one_token_of_each_group(in_widths: list[int]) -> None:
    ends = torch.tensor(in_widths).cumsum(0).tolist()
    pieces = [list(range(end - width, end)) for width, end in zip(in_widths, ends, strict=True)]
    tokenizer = Tokenizer(config("per_group"), in_widths)
    assert tokenizer.tokens_ID.shape == (T * max(in_widths), D)
    assert_equals_naive(tokenizer, pieces)


def test_a_global_token_is_made_of_the_whole_input() -> None:
    torch.manual_seed(1)
    kinds: list[tuple[TokenizerKind, list[int]]] = [("slices", [6, 6, 6]), ("per_group", [3, 8, 1])]
    for kind, widths in kinds:
        config = RankMixerConfig(T, D, layers=1, expansion=2, tokenizer=kind, global_token=True)
        tokenizer = Tokenizer(config, widths)
        torch.nn.init.normal_(tokenizer.tokens_bias_TD)
        x_BI = torch.randn(B, sum(widths))
        x_TBD = tokenizer(x_BI)
        torch.testing.assert_close(x_TBD[0], x_BI @ tokenizer.global_ID + tokenizer.tokens_bias_TD[0])
        maps_TID = tokenizer.tokens_ID.unflatten(0, (T, -1))
        for t, piece_BI in enumerate(x_BI.split(widths, dim=1), 1):
            expected_BD = piece_BI @ maps_TID[t, : widths[t - 1]] + tokenizer.tokens_bias_TD[t]
            torch.testing.assert_close(x_TBD[t], expected_BD)
        assert maps_TID[0].count_nonzero() == 0


def test_per_group_refuses_another_number_of_groups() -> None:
    text = "found 3 groups and tokens = 4; set tokens = 3 or use tokenizer = slices"
    with pytest.raises(ValueError, match=text):
        Tokenizer(config("per_group"), [3, 8, 1])


@pytest.mark.parametrize("in_widths", [[], [3, 0]])
def test_groups_without_width_are_refused(in_widths: list[int]) -> None:
    with pytest.raises(ValueError, match="in_widths must be the widths of the semantic groups, at least 1, found"):
        Tokenizer(config("slices"), in_widths)


def test_input_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="the input is 16 wide, in_widths of the tokenizer add up to 17"):
        Tokenizer(config("slices"), [17])(torch.zeros(B, 16))
