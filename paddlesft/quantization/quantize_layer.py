"""One decoder layer: its Linear layers are looked at, rounded, replaced and compared.

Shape legend: i inputs and o outputs of a Linear, n tokens of one row.

All Linear layers of a decoder layer are looked at before any of them is rounded, as in the paper of GPTQ; what comes
before the decoder layer is rounded already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import paddle
from paddle import nn

from paddlesft.models.quantized.directory import put_layer
from paddlesft.models.quantized.formats import WeightFormat, encode, quantize
from paddlesft.models.quantized.linear import ACT_SCALE, INPUT_SCALE, INPUT_SHIFT, STATIC, QuantizedLinear
from paddlesft.quantization.awq import awq_factors, clipped_scales
from paddlesft.quantization.chosen_linears import Chosen, Sources, chosen_linears
from paddlesft.quantization.gptq import DAMPING, round_by_hessian
from paddlesft.quantization.inputs import ActivationScale, Middle, Moments, Range
from paddlesft.quantization.layer_walk import LayerWalk, Look
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import SEARCH_TOKENS, searched_factors, smooth_factors


@dataclass
class LinearResult:
    """What became of one Linear.

    Attributes:
        name: in the whole model.
        format: of its weight.
        error: |y' - y|^2 / |y|^2 of its output on calibration tokens, given the same input.
        damping: of GPTQ, 0 without it.
        bytes_before: of weight and bias.
        bytes_after: of all that is stored now.
    """

    name: str
    format: str
    error: float
    damping: float
    bytes_before: int
    bytes_after: int


@dataclass
class _Linear:
    """A Linear on its way, with what its input goes through first: x' = (x + shift) / factors."""

    name: str
    layer: nn.Linear
    how: WeightFormat
    shift: paddle.Tensor | None = None
    factors: paddle.Tensor | None = None
    scale: ActivationScale | None = None
    damping: float = 0.0

    @classmethod
    def of(cls, chosen: Chosen) -> _Linear:
        return cls(chosen.name, chosen.layer, chosen.how)

    @property
    def weight(self) -> paddle.Tensor:
        """The weight for x', float32 [i, o]."""
        weight = self.layer.weight.astype("float32")
        return weight if self.factors is None else weight * self.factors.unsqueeze(1)

    def hessian(self, moments: Moments) -> paddle.Tensor:
        """The mean of x' x'^T, float32 [i, i]."""
        hessian = moments.hessian if self.shift is None else moments.shifted_hessian(self.shift)
        return hessian if self.factors is None else hessian / paddle.outer(self.factors, self.factors)

    def reshaped(self, look: Look) -> Look:
        """Look at what the Linear's input becomes."""

        def change(x: paddle.Tensor) -> paddle.Tensor:
            x = x.astype("float32")
            if self.shift is not None:
                x = x + self.shift
            return x if self.factors is None else x / self.factors

        return lambda rows: look([change(x) for x in rows])


def quantize_layer(walk: LayerWalk, name: str, layer: nn.Layer, recipe: Recipe) -> list[LinearResult]:
    """Quantize the Linear layers of one decoder layer, in place.

    Args:
        walk: whose batches stand in front of the layer.
        name: the layer's, in the whole model.
        layer: the decoder layer.
        recipe: what is done.

    Returns:
        A result for each Linear that was quantized, in the order of their names in the layer.

    Raises:
        SingularHessian: GPTQ cannot round one of them.
        UserError: a part of the layer cannot be quantized.
    """
    chosen = chosen_linears(name, layer, recipe)
    if not chosen:
        return []
    sources = Sources(walk, layer, chosen)
    linears = [_Linear.of(one) for one in chosen]
    rounded = [one for one in linears if recipe.activations_of(one.how) == STATIC]
    if rounded:
        _shift(walk, layer, rounded, recipe, sources)
        _smooth(walk, layer, rounded, recipe, sources)
        _scale(walk, layer, rounded, recipe)
    moments = _moments(walk, layer, linears, recipe, sources)
    made = [_made(one, recipe, moments.get(sources.same_as[one.name])) for one in linears]
    errors = _errors(walk, layer, linears, made)
    for one, new in zip(linears, made):
        put_layer(layer, one.name.removeprefix(f"{name}."), new)
    return [
        LinearResult(one.name, one.how.name, error, one.damping, _nbytes(one.layer), _nbytes(new))
        for one, new, error in zip(linears, made, errors)
    ]


def _shift(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe, sources: Sources) -> None:
    if not recipe.shift:
        return
    taken = [one for one in linears if recipe.shift_all or one.name in sources.behind_norm]
    seen = {one.name: Middle(recipe.shift_sampler) for one in taken}
    walk.show(layer, {one.layer: seen[one.name].add for one in taken}, recipe.shift_steps)
    for one in taken:
        one.shift = -seen[one.name].value


def _smooth(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe, sources: Sources) -> None:
    if not recipe.smooth:
        return
    taken = [one for one in linears if recipe.smooth_all or one.name in sources.behind_norm]
    keep = 0
    if recipe.search is not None:
        steps = min(recipe.smooth_steps, len(walk.calls)) if recipe.smooth_sampler == "multi_step" else 1
        keep = -(-SEARCH_TOKENS // steps)
    seen = {one.name: Range(recipe.smooth_sampler, keep) for one in taken}
    walk.show(layer, {one.layer: one.reshaped(seen[one.name].add) for one in taken}, recipe.smooth_steps)
    for one in taken:
        weight = one.layer.weight
        if recipe.search is None:
            one.factors = smooth_factors(seen[one.name], weight)
        else:
            one.factors = searched_factors(seen[one.name], weight, recipe.search)


def _scale(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe) -> None:
    for one in linears:
        one.scale = ActivationScale(recipe.activations)
    walk.show(layer, {one.layer: one.reshaped(one.scale.add) for one in linears}, recipe.steps)


def _moments(
    walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe, sources: Sources
) -> dict[str, Moments]:
    """Collect the moments of each different input, by the name of the first Linear that gets it."""
    used = [(recipe.gptq, recipe.gptq_steps), (recipe.awq, recipe.awq_steps), (recipe.clip, recipe.clip_steps)]
    steps = max((steps for on, steps in used if on), default=0)
    if not steps:
        return {}
    first = {one.name: one for one in linears if sources.same_as[one.name] == one.name}
    moments = {name: Moments() for name in first}
    walk.show(layer, {one.layer: moments[name].add for name, one in first.items()}, steps)
    return moments


@paddle.no_grad()
def _made(one: _Linear, recipe: Recipe, moments: Moments | None) -> QuantizedLinear:
    inputs, outputs = one.layer.weight.shape
    if recipe.awq and moments is not None:
        one.factors = awq_factors(one.layer.weight, moments.hessian, moments.mean, one.how)
    reshaped = one.shift is not None or one.factors is not None
    bias = one.layer.bias if one.shift is None else _shifted_bias(one)
    new = QuantizedLinear(inputs, outputs, one.how, bias is not None, recipe.activations_of(one.how), reshaped)
    new.take(_stored(one, recipe, moments))
    if one.scale is not None:
        new.take({ACT_SCALE: paddle.to_tensor([one.scale.step])})
    if reshaped:
        shift = paddle.zeros([inputs]) if one.shift is None else one.shift
        factors = paddle.ones([inputs]) if one.factors is None else one.factors
        new.take({INPUT_SHIFT: shift, INPUT_SCALE: 1 / factors})
    if bias is not None:
        new.bias.set_value(bias.astype(new.bias.dtype))
    new.eval()
    return new


def _stored(one: _Linear, recipe: Recipe, moments: Moments | None) -> dict[str, paddle.Tensor]:
    if moments is None:
        return quantize(one.weight, one.how)
    weight, hessian = one.weight, one.hessian(moments)
    scales = clipped_scales(weight, hessian, one.how) if recipe.clip else None
    if recipe.gptq:
        rounded = round_by_hessian(weight, hessian, one.how, DAMPING, one.name, scales)
        one.damping = rounded.damping
        return rounded.stored
    return quantize(weight, one.how) if scales is None else encode(weight, scales, one.how)


def _shifted_bias(one: _Linear) -> paddle.Tensor:
    taken = paddle.matmul(one.shift, one.layer.weight.astype("float32"))
    return -taken if one.layer.bias is None else one.layer.bias.astype("float32") - taken


def _errors(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], made: list[QuantizedLinear]) -> list[float]:
    """Return |y' - y|^2 / |y|^2 of each Linear on the first calibration batch."""
    sums = {one.name: [0.0, 0.0] for one in linears}

    def compare(one: _Linear, new: QuantizedLinear) -> Callable[[list[paddle.Tensor]], None]:
        plain = one.layer.forward  # without the hooks that are on it

        def look(rows: list[paddle.Tensor]) -> None:
            x = paddle.concat(rows)
            right = plain(x).astype("float32")
            sums[one.name][0] += float((new(x).astype("float32") - right).square().sum())
            sums[one.name][1] += float(right.square().sum())

        return look

    walk.show(layer, {one.layer: compare(one, new) for one, new in zip(linears, made)}, steps=1)
    return [lost / max(whole, 1e-30) for lost, whole in sums.values()]


def _nbytes(layer: nn.Layer) -> int:
    return sum(tensor.numel().item() * tensor.element_size() for tensor in layer.state_dict().values())
