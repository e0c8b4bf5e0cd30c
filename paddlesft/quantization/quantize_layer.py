"""One decoder layer: its Linear layers are looked at, rounded, replaced and compared.

Shape legend: i inputs and o outputs of a Linear, n tokens of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import paddle
from paddle import nn

from paddlesft.models.quantized.directory import put_layer
from paddlesft.models.quantized.formats import WeightFormat, quantize
from paddlesft.models.quantized.linear import ACT_SCALE, INPUT_SCALE, INPUT_SHIFT, STATIC, QuantizedLinear
from paddlesft.quantization.gptq import DAMPING, round_by_hessian
from paddlesft.quantization.inputs import ActivationScale, Middle, Range
from paddlesft.quantization.layer_walk import LayerWalk
from paddlesft.quantization.recipe import Recipe
from paddlesft.quantization.smoothing import awq_factors, searched_factors, smooth_factors

Looks = Mapping[nn.Layer, Callable[[paddle.Tensor], None]]


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
    hessian: paddle.Tensor | None = None
    tokens: int = 0
    damping: float = 0.0

    def reshaped(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return x' of an input [n, i]."""
        if self.shift is not None:
            x = x + self.shift
        return x if self.factors is None else x / self.factors

    @property
    def weight(self) -> paddle.Tensor:
        """The weight for x', float32 [i, o]."""
        weight = self.layer.weight.astype("float32")
        return weight if self.factors is None else weight * self.factors.unsqueeze(1)

    def collect(self, x: paddle.Tensor) -> None:
        """Add the tokens [n, i] to the Hessian of GPTQ, the mean of x' x'^T."""
        x = self.reshaped(x.astype("float32"))
        new = paddle.matmul(x, x, transpose_x=True)
        total = self.tokens + x.shape[0]
        mean = new / total if self.hessian is None else self.hessian * (self.tokens / total) + new / total
        self.hessian, self.tokens = mean, total


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
    """
    linears = _chosen(name, layer, recipe)
    if not linears:
        return []
    rounded = [one for one in linears if recipe.rounds_activations_of(one.how)]
    if rounded:
        _shift(walk, layer, rounded, recipe)
        _smooth(walk, layer, rounded, recipe)
    elif recipe.awq:
        seen = {one.name: Range("multi_step", keep=True) for one in linears}
        walk.show(layer, {one.layer: seen[one.name].add for one in linears}, recipe.awq_steps)
        for one in linears:
            one.factors = awq_factors(seen[one.name], one.layer.weight, one.how)
    scales = {one.name: ActivationScale(recipe.activations) for one in rounded}
    if rounded:
        walk.show(layer, {one.layer: _after(one, scales[one.name].add) for one in rounded}, recipe.steps)
    if recipe.gptq:
        walk.show(layer, {one.layer: one.collect for one in linears}, recipe.gptq_steps)
    made = [_made(one, recipe, scales.get(one.name)) for one in linears]
    errors = _errors(walk, layer, linears, made)
    for one, new in zip(linears, made):
        put_layer(layer, one.name.removeprefix(f"{name}."), new)
    return [
        LinearResult(one.name, one.how.name, error, one.damping, _nbytes(one.layer), _nbytes(new))
        for one, new, error in zip(linears, made, errors)
    ]


def _chosen(name: str, layer: nn.Layer, recipe: Recipe) -> list[_Linear]:
    found = []
    for part, linear in layer.named_sublayers():
        if type(linear) is not nn.Linear:
            continue
        how = recipe.format_of(f"{name}.{part}")
        if how is not None:
            found.append(_Linear(f"{name}.{part}", linear, how))
    return found


def _shift(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe) -> None:
    if not recipe.shift:
        return
    chosen = linears if recipe.shift_all else behind_norms(walk, layer, linears)
    seen = {one.name: Middle(recipe.shift_sampler) for one in chosen}
    walk.show(layer, {one.layer: seen[one.name].add for one in chosen}, recipe.shift_steps)
    for one in chosen:
        one.shift = -seen[one.name].value


def _smooth(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], recipe: Recipe) -> None:
    if not recipe.smooth:
        return
    chosen = linears if recipe.smooth_all else behind_norms(walk, layer, linears)
    seen = {one.name: Range(recipe.smooth_sampler, keep=recipe.search is not None) for one in chosen}
    walk.show(layer, {one.layer: _after(one, seen[one.name].add) for one in chosen}, recipe.smooth_steps)
    for one in chosen:
        weight = one.layer.weight
        if recipe.search is None:
            one.factors = smooth_factors(seen[one.name], weight)
        else:
            one.factors = searched_factors(seen[one.name], weight, recipe.search)


def behind_norms(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear]) -> list[_Linear]:
    """Return those Linear layers whose input is what a norm of the decoder layer has put out, untouched."""
    outputs: list[paddle.Tensor] = []
    direct: set[nn.Layer] = set()
    handles = [
        part.register_forward_post_hook(lambda _, inputs, output: outputs.append(output))
        for part in layer.sublayers()
        if "norm" in type(part).__name__.lower()
    ]
    for one in linears:

        def note(linear: nn.Layer, inputs: tuple[paddle.Tensor, ...]) -> None:
            if any(inputs[0] is output for output in outputs):
                direct.add(linear)

        handles.append(one.layer.register_forward_pre_hook(note))
    try:
        with paddle.no_grad():
            walk.calls[0](layer)
    finally:
        for handle in handles:
            handle.remove()
    return [one for one in linears if one.layer in direct]


def _after(one: _Linear, look: Callable[[paddle.Tensor], None]) -> Callable[[paddle.Tensor], None]:
    """Look at what a Linear's input becomes; one row at a time, as observers count them."""
    return lambda x: look(one.reshaped(x.astype("float32")).unsqueeze(0))


@paddle.no_grad()
def _made(one: _Linear, recipe: Recipe, scale: ActivationScale | None) -> QuantizedLinear:
    inputs, outputs = one.layer.weight.shape
    reshaped = one.shift is not None or one.factors is not None
    bias = one.layer.bias if one.shift is None else _shifted_bias(one)
    new = QuantizedLinear(inputs, outputs, one.how, bias is not None, STATIC if scale else "", reshaped)
    if recipe.gptq:
        rounded = round_by_hessian(one.weight, one.hessian, one.how, DAMPING, one.name)
        one.damping, one.hessian = rounded.damping, None
        new.take(rounded.stored)
    else:
        new.take(quantize(one.weight, one.how))
    if scale is not None:
        new.take({ACT_SCALE: paddle.to_tensor([scale.step])})
    if reshaped:
        shift = paddle.zeros([inputs]) if one.shift is None else one.shift
        factors = paddle.ones([inputs]) if one.factors is None else one.factors
        new.take({INPUT_SHIFT: shift, INPUT_SCALE: 1 / factors})
    if bias is not None:
        new.bias.set_value(bias.astype(new.bias.dtype))
    new.eval()
    return new


def _shifted_bias(one: _Linear) -> paddle.Tensor:
    taken = paddle.matmul(one.shift, one.layer.weight.astype("float32"))
    return -taken if one.layer.bias is None else one.layer.bias.astype("float32") - taken


def _errors(walk: LayerWalk, layer: nn.Layer, linears: list[_Linear], made: list[QuantizedLinear]) -> list[float]:
    """Return |y' - y|^2 / |y|^2 of each Linear on the first calibration batch."""
    sums = {one.name: [0.0, 0.0] for one in linears}

    def compare(one: _Linear, new: QuantizedLinear) -> Callable[[paddle.Tensor], None]:
        plain = one.layer.forward  # without the hooks that are on it

        def look(x: paddle.Tensor) -> None:
            right = plain(x).astype("float32")
            sums[one.name][0] += float((new(x).astype("float32") - right).square().sum())
            sums[one.name][1] += float(right.square().sum())

        return look

    walk.show(layer, {one.layer: compare(one, new) for one, new in zip(linears, made)}, steps=1)
    return [lost / max(whole, 1e-30) for lost, whole in sums.values()]


def _nbytes(layer: nn.Layer) -> int:
    return sum(tensor.numel().item() * tensor.element_size() for tensor in layer.state_dict().values())
