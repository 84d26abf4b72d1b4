from typing import Any

import pytest
import torch

from rankmixer_head import MoEConfig, RankMixer, RankMixerConfig


def parameter_count(T: int, D: int, L: int, M: int, I: int, K: int) -> int:  # noqa: E741
    padded = -(-I // T) * T
    tokenizer = padded * D + T * D
    ffn = T * (2 * D * M + M + D)
    norms = 2 * 2 * D
    return tokenizer + L * (ffn + norms) + K * (D + 1)


@pytest.mark.parametrize(
    ("preset", "T", "D", "L", "M", "ffn_millions"),
    [
        ("tiny", 8, 32, 2, 128, 0.13),
        ("small", 16, 256, 2, 1024, 16.8),
        ("100m", 16, 768, 2, 2304, 113.3),
        ("1b", 32, 1536, 2, 5376, 1057.0),
    ],
)
def test_presets_have_exactly_the_parameters_of_the_closed_formula(
    preset: str, T: int, D: int, L: int, M: int, ffn_millions: float
) -> None:
    config = RankMixerConfig.preset(preset)
    assert (config.tokens, config.width, config.layers, config.hidden) == (T, D, L, M)
    assert (config.tokenizer, config.head_hidden) == ("slices", ())
    model = RankMixer(config, in_widths=[200, 91, 10], num_tasks=3, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameter_count(T, D, L, M, I=301, K=3)
    assert pytest.approx(ffn_millions * 1e6, rel=0.01) == 2 * L * T * D * M


def test_preset_fields_can_be_replaced() -> None:
    config = RankMixerConfig.preset("small", layers=5, head_hidden=(64, 8))
    assert (config.tokens, config.layers, config.head_hidden) == (16, 5, (64, 8))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'smal'; nearest: small, .*; known: tiny, small, 100m, 1b"):
        RankMixerConfig.preset("smal")


@pytest.mark.parametrize(
    ("tokens", "width", "widths"), [(16, 100, "96, 112"), (8, 7, "8"), (6, 257, "252, 258"), (10, 11, "10, 20")]
)
def test_tokens_that_do_not_divide_the_width_are_refused_with_the_nearest_widths(
    tokens: int, width: int, widths: str
) -> None:
    text = f"tokens = {tokens} does not divide width = {width}, .*; nearest valid widths: {widths}$"
    with pytest.raises(ValueError, match=text):
        RankMixerConfig(tokens=tokens, width=width, layers=1, expansion=2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": 0}, "tokens must be at least 1, found 0"),
        ({"width": -4}, "width must be at least 1, found -4"),
        ({"layers": 0}, "layers must be at least 1, found 0"),
        ({"expansion": 0.01}, r"expansion \* width must be at least 1, found 0.12"),
        ({"head_hidden": (8, 0)}, r"head_hidden must be widths of at least 1, found \(8, 0\)"),
        ({"tokenizer": "per_grup"}, "unknown tokenizer 'per_grup'; nearest: per_group"),
        ({"ablation": "no_mixin"}, "unknown ablation 'no_mixin'; nearest: no_mixing"),
        ({"block": "large"}, "unknown block 'large'; nearest: tokenmixer_large"),
        ({"global_token": True, "tokens": 1}, "global_token = true and tokens = 1 contradict each other; give up one"),
        ({"block": "tokenmixer_large", "ablation": "no_skip"}, "tokenmixer_large and ablation = no_skip contradict"),
        ({"block": "tokenmixer_large", "mixing_gain": True}, "tokenmixer_large and mixing_gain = true contradict"),
        ({"block": "tokenmixer_large", "moe": MoEConfig(2)}, "tokenmixer_large and moe contradict"),
        ({"ablation": "no_skip", "mixing_gain": True}, "ablation = no_skip and mixing_gain = true contradict"),
        ({"ablation": "shared_ffn", "moe": MoEConfig(2)}, "ablation = shared_ffn and moe contradict"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], text: str) -> None:
    sizes = {"tokens": 4, "width": 12, "layers": 1, "expansion": 2}
    with pytest.raises(ValueError, match=text):
        RankMixerConfig(**(sizes | change))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"experts": 0}, "moe.experts must be at least 1, found 0"),
        ({"active_ratio": 0.0}, "moe.active_ratio must be above 0 and at most 1, found 0.0"),
        ({"active_ratio": 1.5}, "moe.active_ratio must be above 0 and at most 1, found 1.5"),
        ({"dense_above": 2.0}, "moe.dense_above must be between 0 and 1, found 2.0"),
        ({"routing": "topk"}, "unknown moe.routing 'topk'; nearest: top_k"),
        ({"routing": "top_k", "active_ratio": 0.3}, "moe.active_ratio = 0.3 is not one; use one of 1/4, 2/4, 3/4, 4/4"),
    ],
)
def test_impossible_experts_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MoEConfig(**({"experts": 4} | fields))


def test_hidden_width_is_rounded() -> None:
    assert RankMixerConfig(tokens=4, width=12, layers=1, expansion=2.3).hidden == 28


def test_meta_model_holds_no_memory() -> None:
    model = RankMixer(RankMixerConfig.preset("1b"), in_widths=[4096], num_tasks=1, device="meta")
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
