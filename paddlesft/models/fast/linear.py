"""Linear layers that read one input, with their LoRA adapters, as one differentiable step.

``y_i = x W_i + b_i + s_i (x A_i) B_i``. A frozen ``W`` costs no weight gradient; the gradient of ``x`` is summed over
the layers here, in place, and the low-rank products are added into ``y`` and ``dx`` without a tensor of their own
(Hu et al. 2021, arXiv:2106.09685).

Shapes: n tokens, i input size, o output size, r rank.
"""

from __future__ import annotations

from typing import NamedTuple

from paddle import Tensor, _C_ops, nn
from paddle.autograd import PyLayer
from paddlenlp.peft.lora.lora_layers import LoRALinear

from paddlesft.models.fast.primitives import matmul
from paddlesft.models.quantized.linear import QuantizedLinear


class Projection(NamedTuple):
    """The tensors of one linear layer.

    Attributes:
        weight: float32 [i, o].
        bias: float32 [o] or None.
        lora_a: float32 [i, r] or None.
        lora_b: float32 [r, o] or None.
        scaling: the factor of the adapter's product.
    """

    weight: Tensor
    bias: Tensor | None
    lora_a: Tensor | None
    lora_b: Tensor | None
    scaling: float


class SharedInputLinears(PyLayer):
    """``(x [n, i], layout, *tensors) -> y_1 [n, o_1], ...``; ``layout`` says which tensors belong to which layer."""

    @staticmethod
    def forward(ctx, x: Tensor, layout: tuple[tuple[bool, bool, float], ...], *tensors: Tensor):
        ctx.layout = layout
        ctx.wants_x = not x.stop_gradient
        ctx.wants = [not tensor.stop_gradient for tensor in tensors]
        remaining = iter(tensors)
        outputs, reduced = [], []
        for has_bias, has_lora, scaling in layout:
            y = matmul(x, next(remaining))
            if has_bias:
                y = _C_ops.add(y, next(remaining))
            if has_lora:
                u = _C_ops.scale(matmul(x, next(remaining)), scaling, 0.0, True)
                y = _C_ops.addmm_(y, u, next(remaining), 1.0, 1.0)
                reduced.append(u)
            outputs.append(y)
        ctx.save_for_backward(x, *tensors, *reduced)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, *saved = ctx.saved_tensor()
        count = len(ctx.wants)
        remaining, wants, reduced = iter(saved[:count]), iter(ctx.wants), iter(saved[count:])
        grad_x, grad_tensors = None, []
        for grad, (has_bias, has_lora, scaling) in zip(grads, ctx.layout):
            weight = next(remaining)
            if ctx.wants_x:
                part = matmul(grad, weight, transpose_y=True)
                grad_x = part if grad_x is None else _C_ops.add_(grad_x, part)
            grad_tensors.append(matmul(x, grad, transpose_x=True) if next(wants) else None)
            if has_bias:
                next(remaining)
                grad_tensors.append(_C_ops.sum(grad, [0], None, False) if next(wants) else None)
            if has_lora:
                lora_a, lora_b, u = next(remaining), next(remaining), next(reduced)
                grad_u = _C_ops.scale(matmul(grad, lora_b, transpose_y=True), scaling, 0.0, True)
                grad_tensors.append(matmul(x, grad_u, transpose_x=True) if next(wants) else None)
                grad_tensors.append(matmul(u, grad, transpose_x=True) if next(wants) else None)
                if ctx.wants_x:
                    grad_x = _C_ops.addmm_(grad_x, grad_u, lora_a.T.contiguous(), 1.0, 1.0)
        return grad_x, *grad_tensors


def projection_of(layer: nn.Layer) -> Projection | None:
    """Return the tensors of a linear layer, or None where only its own forward pass is right.

    That is every class but ``nn.Linear`` and ``LoRALinear``, the LoRA variants (PiSSA, MoRA, mixer), and layers with
    forward hooks. Active LoRA dropout is handled by ``linears``.
    """
    if layer._forward_pre_hooks or layer._forward_post_hooks:
        return None
    if type(layer) is nn.Linear:
        return Projection(layer.weight, layer.bias, None, None, 0.0)
    if type(layer) is not LoRALinear or layer.pissa or layer.lora_use_mixer or layer.use_mora:
        return None
    if layer.disable_lora or layer.merged:
        return Projection(layer.weight, layer.bias, None, None, 0.0)
    return Projection(layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.scaling)


def is_quantized(layer: nn.Layer) -> bool:
    """Return whether a layer is quantized, with or without an adapter; such a layer runs by itself, on any rows."""
    return isinstance(layer, QuantizedLinear) and not layer._forward_pre_hooks and not layer._forward_post_hooks


def drops_out(layer: nn.Layer) -> bool:
    """Return whether a LoRA layer drops inputs of its adapter now."""
    return isinstance(getattr(layer, "lora_dropout", None), nn.Dropout) and layer.lora_dropout.training


def linears(x: Tensor, layers: list[nn.Layer]) -> list[Tensor] | None:
    """Apply linear layers to one input.

    Args:
        x: float32 [n, i].
        layers: the layers, each [i] -> [o].

    Returns:
        One float32 [n, o] per layer, or None where a layer has to run by itself (see ``projection_of``) and is not
        quantized, or not all are.
    """
    if all(is_quantized(layer) for layer in layers):
        return [layer(x) for layer in layers]
    projections = [projection_of(layer) for layer in layers]
    if None in projections:
        return None
    dropped = [drops_out(layer) and p.lora_a is not None for layer, p in zip(layers, projections)]
    layout, tensors = [], []
    for p, outside in zip(projections, dropped):
        has_lora = p.lora_a is not None and not outside
        layout.append((p.bias is not None, has_lora, p.scaling))
        tensors += [p.weight] + [p.bias] * (p.bias is not None) + [p.lora_a, p.lora_b] * has_lora
    outputs = list(SharedInputLinears.apply(x, tuple(layout), *tensors))
    for i, (layer, p, outside) in enumerate(zip(layers, projections, dropped)):
        if outside:
            outputs[i] = outputs[i] + (layer.lora_dropout(x) @ p.lora_a @ p.lora_b) * p.scaling
    return outputs
