"""Model directories with quantized layers: ``quantization_config`` in config.json says which layers have which format.

The entry names a method of our own, so that other tools refuse the directory instead of computing with random weights:
PaddleNLP and transformers both look at it first and know no such method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from paddlesft.directories import write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config
from paddlesft.models.filling import fill
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.linear import QuantizedLinear, check_activations
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, write_weights

KEY, METHOD = "quantization_config", "paddlesft"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """How one Linear is stored.

    Attributes:
        format: name of the weight's format.
        group_size: of it.
        double_quantization: of it.
        scales_per_block: of it.
        activations: how the input is rounded to 8 bits, see ``QuantizedLinear``.
        reshaped_input: the input is shifted and scaled first.
        bias: the layer has one.
    """

    format: str
    group_size: int = 0
    double_quantization: bool = False
    scales_per_block: int = 256
    activations: str = ""
    reshaped_input: bool = False
    bias: bool = False

    @property
    def how(self) -> WeightFormat:
        """The weight's format."""
        return WeightFormat(self.format, self.group_size, self.double_quantization, self.scales_per_block)

    def empty(self, inputs: int, outputs: int) -> QuantizedLinear:
        """Return a layer of this kind whose tensors are not filled in yet."""
        return QuantizedLinear(inputs, outputs, self.how, self.bias, self.activations, self.reshaped_input)


def record_of(layer: QuantizedLinear) -> LayerRecord:
    """Return the record of a layer."""
    how = layer.how
    return LayerRecord(
        how.name,
        how.group_size,
        how.double_quantization,
        how.scales_per_block,
        layer.activations,
        layer.reshaped_input,
        layer.bias is not None,
    )


def quantized_layers(model: nn.Layer) -> dict[str, QuantizedLinear]:
    """Return the quantized layers of a model by name."""
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, QuantizedLinear)}


def quantization_entry(model: nn.Layer) -> dict[str, Any]:
    """Return what config.json says about a model with quantized layers.

    Args:
        model: the model.

    Returns:
        JSON values. ``kinds`` lists each kind of layer once; ``layers`` gives every layer the number of its kind.
    """
    kinds: list[LayerRecord] = []
    layers: dict[str, int] = {}
    for name, layer in quantized_layers(model).items():
        record = record_of(layer)
        if record not in kinds:
            kinds.append(record)
        layers[name] = kinds.index(record)
    return {
        "quant_method": METHOD,
        "weight_quantize_algo": METHOD,  # the name under which PaddleNLP looks
        "version": FORMAT_VERSION,
        "kinds": [asdict(kind) for kind in kinds],
        "layers": layers,
    }


def read_records(config: Mapping[str, Any], where: str) -> dict[str, LayerRecord]:
    """Read which layers of a directory are quantized.

    Args:
        config: content of config.json.
        where: the file, for messages.

    Returns:
        Record by layer name; empty where nothing is quantized.

    Raises:
        ModelDirectoryError: another tool has quantized the model, or a later version of this package has.
    """
    entry = config.get(KEY)
    if not entry:
        return {}
    method = entry.get("quant_method") or entry.get("weight_quantize_algo") or entry.get("quant_type")
    if method is None:
        return {}  # PaddleNLP writes the entry without a method into every config.json
    if method != METHOD:
        raise ModelDirectoryError(
            f"{where}: {KEY} says that the model was quantized by {method!r}, which is not read here. Give the model "
            "in float32, bfloat16 or float16, and quantize it with paddlesft quantize."
        )
    if entry.get("version") != FORMAT_VERSION:
        raise ModelDirectoryError(
            f"{where}: {KEY} has version {entry.get('version')!r}; this version of paddlesft reads {FORMAT_VERSION}. "
            "Update paddlesft."
        )
    try:
        kinds = [LayerRecord(**kind) for kind in entry["kinds"]]
        for kind in kinds:
            check_activations(kind.activations, kind.how)
        return {name: kinds[number] for name, number in entry["layers"].items()}
    except (KeyError, TypeError, IndexError, ModelDirectoryError) as error:
        raise ModelDirectoryError(f"{where}: {KEY} is damaged ({error!r}). Get the directory again.") from error


def put_layer(model: nn.Layer, name: str, layer: nn.Layer) -> None:
    """Put a layer in the place of the one with this name."""
    parent, _, last = name.rpartition(".")
    for part in parent.split(".") if parent else ():
        model = getattr(model, part)
    setattr(model, last, layer)


def put_empty_layers(model: nn.Layer, records: Mapping[str, LayerRecord], where: str) -> None:
    """Put empty quantized layers in the places of the Linear layers that records name.

    Raises:
        ModelDirectoryError: the model has no such Linear.
    """
    layers = dict(model.named_sublayers())
    for name, record in records.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            found = "nothing" if layer is None else f"a {type(layer).__name__}"
            raise ModelDirectoryError(
                f"{where}: {KEY} names {name}, but there is {found} in a model of this config. The files do not belong "
                "together: get the directory again."
            )
        put_layer(model, name, record.empty(*layer.weight.shape))


def fill_quantized(model: nn.Layer, stored: Mapping[str, Any], directory: Path) -> None:
    """Fill a model with quantized layers from stored tensors, in the types that they were stored in.

    Args:
        model: its parameters may be uninitialized (``paddle.LazyGuard``).
        stored: tensors of a directory by name, each with ``load()``.
        directory: for messages.

    Raises:
        ModelDirectoryError: tensors are missing or have other sizes.
    """
    for name, tensor in model.state_dict().items():
        if name not in stored:
            continue  # buffers that are computed, second names; what is missing is looked for by the caller
        array = stored[name].load()
        if tuple(array.shape) != tuple(tensor.shape):
            raise ModelDirectoryError(
                f"{directory}: {name} is {list(array.shape)} instead of {list(tensor.shape)}. The files do not belong "
                "together: get the directory again."
            )
        fill(tensor, array)


def save_quantized(
    model: nn.Layer, state: Mapping[str, paddle.Tensor], directory: Path, float_dtype: str | None = None
) -> None:
    """Write config, generation config and weights of a model with quantized layers, each tensor in its own type.

    Args:
        model: a PaddleNLP causal language model.
        state: its tensors by name, each once.
        directory: an existing scratch directory.
        float_dtype: type for the weights outside quantized layers that lose nothing by it: a model whose weights are
            bfloat16 on disk has them in float32 on a CPU.
    """
    dtype = float_dtype or str(model.config.dtype)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(str(directory))
    content = {key: value for key, value in read_config(directory).items() if key != "torch_dtype"}
    write_json(directory / "config.json", {**content, "dtype": dtype, KEY: quantization_entry(model)})
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(str(directory))
    layers = quantized_layers(model)
    tensors = {}
    for name, tensor in state.items():
        outside = name.rpartition(".")[0] not in layers
        tensors[name] = NewTensor.of(tensor, dtype if outside and _fits(tensor, dtype) else None)
    write_weights(directory, tensors, PADDLE_LAYOUT)


def _fits(tensor: paddle.Tensor, dtype: str) -> bool:
    """Whether a float32 tensor has the same numbers in another type."""
    if tensor.dtype != paddle.float32 or dtype == "float32":
        return False
    return bool((tensor.astype(dtype).astype("float32") == tensor).all())
