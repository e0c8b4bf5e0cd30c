"""Walking through the layers gives every layer the inputs that the whole model gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import FAMILIES
from paddlesft.models.load import load_model
from paddlesft.quantization.layer_walk import LayerWalk, decoder_layers


def batches(model: nn.Layer) -> list[dict[str, np.ndarray]]:
    decoder = decoder_of(model)
    random = np.random.default_rng(0)
    found = []
    for length in (7, 5):
        row = decoder.as_prompt(random.integers(5, 40, length).tolist())
        ids = np.asarray([row, row])
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return found


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_layers_are_given_what_the_model_gives_them(name: str, tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family(name))
    given = batches(model)
    seen: dict[str, list[np.ndarray]] = {}
    handles = []
    for layer_name, layer in decoder_layers(model).items():

        def note(_: Any, inputs: Any, output: Any, layer_name: str = layer_name) -> None:
            output = output[0] if isinstance(output, tuple | list) else output
            seen.setdefault(layer_name, []).append(output.numpy())

        handles.append(layer.register_forward_post_hook(note))
    with paddle.no_grad():
        for batch in given:
            decoder_of(model).run(*(paddle.to_tensor(batch[key]) for key in ("input_ids", "attention_mask")))
    for handle in handles:
        handle.remove()
    walk = LayerWalk(model, given)
    assert list(walk.layers) == list(seen) and len(seen) == 2
    names = []
    for layer_name, _ in walk:
        if names:
            for call, wanted in zip(walk.calls, seen[names[-1]]):
                np.testing.assert_allclose(call.hidden.numpy(), wanted, atol=1e-6)
        names.append(layer_name)
    for call, wanted in zip(walk.calls, seen[names[-1]]):
        np.testing.assert_allclose(call.hidden.numpy(), wanted, atol=1e-6)


def test_parts_of_a_layer_can_be_looked_at(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    walk = LayerWalk(model, batches(model))
    name, layer = next(iter(walk))
    linears = [part for part in layer.sublayers() if isinstance(part, nn.Linear)]
    shapes: list[list[int]] = []
    walk.show(layer, {part: lambda rows: shapes.extend(row.shape for row in rows) for part in linears}, steps=1)
    assert name == "llama.layers.0" and len(linears) == 7 and len(shapes) == 14  # for each of two rows
    assert {shape[-1] for shape in shapes} == {part.weight.shape[0] for part in linears}
    assert {shape[0] for shape in shapes} == {7}
    walk.show(layer, {}, steps=1)
    assert len(shapes) == 14  # nobody looks any more


@pytest.mark.parametrize("name", ["llama", "chatglm", "chatglm_v2"])
def test_padding_is_not_looked_at(name: str, tiny_family: Callable[[str], Path]) -> None:
    model = load_model(tiny_family(name))
    prompt = decoder_of(model).as_prompt
    rows = [prompt(list(range(5, 15))), prompt(list(range(20, 24)))]
    width = max(map(len, rows))
    padded = {
        "input_ids": np.asarray([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": np.asarray([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    alone = [{"input_ids": np.asarray([row]), "attention_mask": np.ones([1, len(row)], dtype=int)} for row in rows]
    seen = []
    for given in ([padded], alone):
        inputs: list[np.ndarray] = []
        walk = LayerWalk(model, given)
        for _, layer in walk:
            first = next(part for part in layer.sublayers() if isinstance(part, nn.Linear))
            walk.show(layer, {first: lambda found, inputs=inputs: inputs.extend(row.numpy() for row in found)}, steps=2)
        seen.append(inputs)
    assert len(seen[0]) == len(seen[1]) == 4
    for one, two in zip(*seen):
        np.testing.assert_allclose(one, two, atol=1e-5)
