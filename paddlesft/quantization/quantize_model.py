"""A whole model, decoder layer by decoder layer; what is done already survives an interruption.

After each layer its quantized parts are written into a working directory. A run that finds such a directory of the same
recipe, model and data reads them instead of computing them again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from paddlesft.directories import write_json
from paddlesft.errors import UserError
from paddlesft.models.quantized.directory import LayerRecord, put_layer, quantized_layers, record_of
from paddlesft.quantization.layer_walk import LayerWalk
from paddlesft.quantization.quantize_layer import LinearResult, quantize_layer
from paddlesft.quantization.recipe import Recipe

Progress = Callable[[int, int, str, float, list[LinearResult]], None]


def quantize_model(
    model: nn.Layer,
    batches: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    work: Path | None = None,
    identity: str = "",
    on_layer: Progress | None = None,
) -> list[LinearResult]:
    """Quantize the Linear layers of all decoder layers, in place.

    Args:
        model: a causal language model in evaluation mode.
        batches: collated calibration batches.
        recipe: what is done.
        work: a directory in which finished layers are kept, made if needed; None keeps nothing.
        identity: of model and data; finished layers of another one are not used.
        on_layer: called with the layers done, their number, the name of the last one, the seconds that the rest will
            take, and the results of the last one.

    Returns:
        A result for each Linear, in the order in which they run.

    Raises:
        UserError: a layer cannot be quantized, or nothing can be written to ``work``.
    """
    kept = _Kept(work, _key(recipe, identity)) if work is not None else None
    walk = LayerWalk(model, batches[: recipe.batches])
    results: list[LinearResult] = []
    seconds, computed = 0.0, 0
    begin = time.perf_counter()
    for number, (name, layer) in enumerate(walk, start=1):
        found = kept.read(name, layer) if kept is not None else None
        if found is None:
            found = quantize_layer(walk, name, layer, recipe)
            computed += 1
            if kept is not None:
                kept.write(name, layer, found)
        results += found
        now = time.perf_counter()
        seconds, begin = (seconds + now - begin, now) if computed else (0.0, now)
        left = seconds / max(computed, 1) * (len(walk.layers) - number)
        if on_layer is not None:
            on_layer(number, len(walk.layers), name, left, found)
    return results


def layers_kept(work: Path, recipe: Recipe, identity: str) -> int:
    """Return how many layers of an interrupted run can be used, see ``quantize_model``."""
    marker = work / _Kept.MARKER
    fits = marker.is_file() and json.loads(marker.read_text(encoding="utf-8")).get("key") == _key(recipe, identity)
    return len(list(work.glob("layer-*.json"))) if fits else 0


def _key(recipe: Recipe, identity: str) -> str:
    text = json.dumps([asdict(recipe), identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Kept:
    """The finished layers of a working directory."""

    MARKER = "recipe.json"

    def __init__(self, directory: Path, key: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        marker = directory / self.MARKER
        if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")).get("key") != key:
            for path in directory.glob("layer-*"):
                path.unlink()
            write_json(marker, {"key": key})

    def write(self, name: str, layer: nn.Layer, results: list[LinearResult]) -> None:
        """Keep the quantized parts of a decoder layer."""
        tensors, records = {}, {}
        for part, linear in quantized_layers(layer).items():
            records[part] = asdict(record_of(linear)) | {"size": [linear.in_features, linear.out_features]}
            for key, tensor in linear.state_dict().items():
                tensors[f"{part}.{key}"] = np.ascontiguousarray(tensor.astype(_plain(tensor)).numpy())
        try:
            save_file(tensors, self._file(name, "safetensors"))
        except SafetensorError as error:
            raise UserError(
                f"Cannot keep the finished layer {name} in {self.directory}: {error}. Free some space there; the same "
                "command then goes on at this layer."
            ) from error
        content = {"records": records, "results": [asdict(one) for one in results]}
        write_json(self._file(name, "json"), content)  # last: it says that the layer is complete

    def read(self, name: str, layer: nn.Layer) -> list[LinearResult] | None:
        """Put the kept parts of a decoder layer in place; None where there are none."""
        if not self._file(name, "json").is_file():
            return None
        content = json.loads(self._file(name, "json").read_text(encoding="utf-8"))
        tensors = load_file(self._file(name, "safetensors"))
        for part, values in content["records"].items():
            size = values.pop("size")
            made = LayerRecord(**values).empty(*size)
            for key, tensor in made.state_dict().items():
                tensor.set_value(paddle.to_tensor(tensors[f"{part}.{key}"]).astype(tensor.dtype))
            made.eval()
            put_layer(layer, part, made)
        return [LinearResult(**one) for one in content["results"]]

    def _file(self, name: str, kind: str) -> Path:
        return self.directory / f"layer-{name}.{kind}"


def _plain(tensor: paddle.Tensor) -> paddle.dtype:
    return paddle.float32 if tensor.dtype == paddle.bfloat16 else tensor.dtype
