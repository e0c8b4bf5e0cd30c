"""Activations of 8 bits on models whose activations are hard to round: what Smooth and Shift are for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.models.load import load_model
from paddlesft.quantization.layer_walk import decoder_layers
from paddlesft.quantization.quantize_model import quantize_model
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import PieceSearch
from tests.models.quantized.test_directory import logits

LOUD = (3, 17, 40)  # inputs behind each norm
TIMES = 100.0
OFFSET = 30.0
READERS = {  # norm -> those who read it
    "llama": {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "gpt": {"norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "norm2": ("linear1",)},
}


def calibration() -> list[dict[str, np.ndarray]]:
    """Enough tokens for ranges that other tokens keep to."""
    random = np.random.default_rng(0)
    ids = [random.integers(5, 400, [6, 32]) for _ in range(3)]
    return [{"input_ids": one, "attention_mask": np.ones_like(one)} for one in ids]


def part_of(layer: nn.Layer, name: str) -> nn.Layer:
    return dict(layer.named_sublayers())[name]


@paddle.no_grad()
def with_outliers(model: nn.Layer, family: str) -> nn.Layer:
    """Let some outputs of norms be a hundred times larger, and the rows that read them smaller: the same function."""
    times = paddle.ones([64])
    times[list(LOUD)] = TIMES
    for layer in decoder_layers(model).values():
        for norm, readers in READERS[family].items():
            for one in part_of(layer, norm).parameters():
                one.set_value(one * times)
            for reader in readers:
                weight = part_of(layer, reader).weight
                weight.set_value(weight / times.unsqueeze(1))
    return model


@paddle.no_grad()
def with_offset(model: nn.Layer, family: str) -> nn.Layer:
    """Move some outputs of norms far from zero, and the biases of those who read them back: the same function."""
    moved = paddle.zeros([64])
    moved[list(LOUD)] = paddle.to_tensor([OFFSET, -OFFSET, OFFSET])
    for layer in decoder_layers(model).values():
        for norm, readers in READERS[family].items():
            bias = part_of(layer, norm).bias
            bias.set_value(bias + moved)
            for reader in readers:
                linear = part_of(layer, reader)
                linear.bias.set_value(linear.bias - paddle.matmul(moved, linear.weight))
    return model


def lost(path: Path, recipe: Recipe, change: Callable[[nn.Layer], nn.Layer] = lambda model: model) -> float:
    """|l' - l| / |l| of the logits, against the float model without any change."""
    plain, model = load_model(path), change(load_model(path))
    wanted = logits(plain)
    np.testing.assert_allclose(logits(model), wanted, atol=2e-3 * np.abs(wanted).max())  # the same function
    quantize_model(model, calibration(), recipe)
    return float(np.linalg.norm(logits(model) - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Callable[[str, bool], float]:
    """What rounding alone loses, by the way scales are found and whether there are outliers."""

    @functools.cache
    def measured(activations: str, outliers: bool) -> float:
        change = (lambda model: with_outliers(model, "llama")) if outliers else (lambda model: model)
        return lost(tiny_llama, Recipe("a8w8", activations=activations), change)

    return measured


SMOOTH = {
    "none": Recipe("a8w8", smooth=True),
    "multi_step": Recipe("a8w8", smooth=True, smooth_sampler="multi_step"),
    "all linears": Recipe("a8w8", smooth=True, smooth_all=True),
    "largest": Recipe("a8w8", smooth=True, activations="abs_max"),
    "search none": Recipe("a8w8", smooth=True, search=PieceSearch(pieces=1)),
    "search multi_step": Recipe("a8w8", smooth=True, smooth_sampler="multi_step", search=PieceSearch()),
    "search pieces": Recipe("a8w8", smooth=True, search=PieceSearch(pieces=2, search_pieces=True)),
    "shift too": Recipe("a8w8", shift=True, smooth=True),
}


@pytest.mark.parametrize("recipe", SMOOTH.values(), ids=SMOOTH)
def test_smoothing_repairs_outliers(recipe: Recipe, tiny_llama: Path, plain: Callable[[str, bool], float]) -> None:
    """Plain rounding loses what the other inputs say; smoothing comes near the model that has no outliers."""
    smooth = lost(tiny_llama, recipe, lambda model: with_outliers(model, "llama"))
    quiet = plain(recipe.activations, False)
    assert plain(recipe.activations, True) > 10 * quiet
    assert smooth < 1.5 * quiet


@pytest.mark.parametrize("sampler", ["ema", "none"])
@pytest.mark.parametrize("every", [False, True], ids=["behind norms", "all linears"])
def test_shift_repairs_an_offset(sampler: str, every: bool, tiny_family: Callable[[str], Path]) -> None:
    path = tiny_family("gpt")

    def change(model: nn.Layer) -> nn.Layer:
        return with_offset(model, "gpt")

    rounded, undisturbed = lost(path, Recipe("a8w8"), change), lost(path, Recipe("a8w8"))
    shifted = lost(path, Recipe("a8w8", shift=True, shift_sampler=sampler, shift_all=every), change)
    assert rounded > 4 * undisturbed
    assert shifted < 1.5 * undisturbed


def test_smoothing_cannot_repair_an_offset_but_both_together_do(tiny_family: Callable[[str], Path]) -> None:
    path = tiny_family("gpt")

    def change(model: nn.Layer) -> nn.Layer:
        return with_outliers(with_offset(model, "gpt"), "gpt")

    both = lost(path, Recipe("a8w8", shift=True, smooth=True), change)
    assert both < 1.5 * lost(path, Recipe("a8w8"))
    assert both < 0.7 * lost(path, Recipe("a8w8", smooth=True), change)
    assert both < 0.2 * lost(path, Recipe("a8w8", shift=True), change)


@pytest.mark.parametrize("smooth", [False, True])
def test_clipping_knows_that_inputs_are_shifted(smooth: bool, tiny_family: Callable[[str], Path]) -> None:
    path = tiny_family("gpt")

    def change(model: nn.Layer) -> nn.Layer:
        return with_offset(model, "gpt")

    shift = Recipe("a8w8", shift=True, smooth=smooth)
    assert lost(path, replace(shift, clip=True), change) < 1.02 * lost(path, shift, change)
