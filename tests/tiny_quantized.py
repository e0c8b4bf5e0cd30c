"""Tiny models in quantized directories, as ``paddlesft quantize`` writes them, made in a fraction of a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("int8", "int4", "nf4", "awq", "a8w8", "llm.int8")


def write_quantized(path: Path, base: Path, kind: str = "int8", **facts: Any) -> Path:
    """Quantize the decoder layers of a model.

    Args:
        path: the directory to create.
        base: a float model's directory.
        kind: int8, int4 (one scale per output), nf4 (groups of 16 with double quantization), awq (int4 with scaled
            inputs), a8w8 (with shifted and scaled inputs where the layer has a bias, else scaled ones) or llm.int8.
        facts: entries for ``paddlesft.json``.

    Returns:
        ``path``.
    """
    import paddle
    from paddle import nn

    from paddlesft.models import base_facts, load_model
    from paddlesft.models.decoders import decoder_of
    from paddlesft.models.load import save_model_directory
    from paddlesft.models.quantized.directory import put_layer
    from paddlesft.models.quantized.formats import WeightFormat, quantize
    from paddlesft.models.quantized.linear import QuantizedLinear

    how = {"int4": WeightFormat("int4"), "awq": WeightFormat("int4"), "nf4": WeightFormat("nf4", 16, True)}
    activations = {"a8w8": "static", "llm.int8": "dynamic"}.get(kind, "")
    random = np.random.default_rng(0)
    model = load_model(base)
    inside = re.compile(r".*\.\d+\..*")  # a decoder layer
    found = model.named_sublayers()
    linears = {name: layer for name, layer in found if type(layer) is nn.Linear and inside.fullmatch(name)}
    largest: dict[str, paddle.Tensor] = {}

    def look(name: str) -> Any:
        def hook(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...]) -> None:
            largest[name] = inputs[0].abs().max()

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in linears.items()]
    decoder = decoder_of(model)
    with paddle.no_grad():
        decoder.run(paddle.to_tensor([decoder.as_prompt(random.integers(5, model.config.vocab_size, 32).tolist())]))
    for hook in hooks:
        hook.remove()
    for name, layer in linears.items():
        reshaped, biased = kind in ("awq", "a8w8"), layer.bias is not None
        made = QuantizedLinear(
            *layer.weight.shape, how.get(kind, WeightFormat("int8")), biased, activations, reshaped_input=reshaped
        )
        weight, inputs = layer.weight.detach(), layer.weight.shape[0]
        if biased:
            made.bias.set_value(layer.bias)
        if reshaped:
            factors = paddle.to_tensor(random.uniform(0.5, 2, inputs).astype(np.float32))
            made.input_scale.set_value(factors)
            if biased and kind == "a8w8":
                shift = paddle.to_tensor(random.normal(0, 0.1, inputs).astype(np.float32))
                made.input_shift.set_value(shift)
                made.bias.set_value(layer.bias - paddle.matmul(shift, weight))
            weight = weight / factors.unsqueeze(1)
        if activations == "static":
            made.act_scale.set_value(largest[name].reshape([1]) * 2 / 127)
        made.take(quantize(weight, made.how))
        put_layer(model, name, made)
    path.mkdir(parents=True)
    save_model_directory(
        model, base, path, **{"source": "paddlesft quantize", "base": base_facts(base), "quant_type": kind, **facts}
    )
    return path
