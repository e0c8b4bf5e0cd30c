"""Weights of an ONNX graph, in one file beside it: written one by one, at addresses that can be mapped into memory.

Shape legend: i inputs and o outputs of a Linear, g groups of inputs that share a scale, k blocks of b inputs each.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

from paddlesft.export.onnx_packages import onnx
from paddlesft.models.quantized.formats import TABLES, WEIGHT, scale_of
from paddlesft.models.quantized.linear import QuantizedLinear

ALIGNMENT = 4096  # a page: ONNX Runtime maps what begins with one
SMALL = 1024  # bytes that stay in the graph itself
LARGEST_BLOCK, SMALLEST_BLOCK = 32, 16  # inputs that share a scale in MatMulNBits; activations are rounded by them, too


class WeightFile:
    """The file that holds the initializers of a graph.

    Args:
        path: beside the graph; created.
        graph: which gets the initializers.
    """

    def __init__(self, path: Path, graph: Any) -> None:
        self._path, self._graph = path, graph
        self._file: IO[bytes] = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray) -> str:
        """Write an array and make it an initializer; return its name."""
        array = np.ascontiguousarray(array)
        if array.nbytes <= SMALL:
            self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            return name
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.write(b"\0" * (start - self._file.tell()))
        self._file.write(array.data)
        tensor = self._graph.initializer.add()
        tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._path.name), ("offset", start), ("length", array.nbytes)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return name


def unpacked(layer: QuantizedLinear) -> np.ndarray:
    """Return the codes of a layer one by one, int8 or uint8 [i, o]; those of 4 bits from 0 to 15."""
    codes = layer.stored[WEIGHT].numpy()
    if layer.how.bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=1).reshape(-1, codes.shape[1])[: layer.in_features]


def scales(layer: QuantizedLinear) -> np.ndarray:
    """Return the scales of a layer, float32 [g, o]."""
    return scale_of(layer.stored, layer.how).numpy()


def block_size(layer: QuantizedLinear) -> int | None:
    """Return the largest block that MatMulNBits takes and that lies in one group; None where there is none."""
    size = LARGEST_BLOCK
    while size >= SMALLEST_BLOCK:
        if not layer.how.group_size or layer.how.group_size % size == 0 or layer.how.group_size >= layer.in_features:
            return size
        size //= 2
    return None


def in_blocks(layer: QuantizedLinear, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrange codes and scales as MatMulNBits wants them.

    Args:
        layer: of the format int8 or int4.
        size: b, of ``block_size``.

    Returns:
        Codes uint8 [o, k, b] without sign, in pairs [o, k, b / 2] where they have 4 bits, and scales float32 [o, k].
    """
    eight = layer.how.bits == 8
    codes = (unpacked(layer).astype(np.int16) + 128).astype(np.uint8) if eight else unpacked(layer)
    inputs, outputs = codes.shape
    count = -(-inputs // size)
    filled = np.full([outputs, count * size], 128 if eight else 8, dtype=np.uint8)  # stands for zero
    filled[:, :inputs] = codes.T
    if not eight:
        filled = filled[:, 0::2] | (filled[:, 1::2] << 4)
    group = np.arange(count) * size // (layer.how.group_size or inputs)
    return filled.reshape(outputs, count, -1), np.ascontiguousarray(scales(layer)[group].T)


def add_dequantized(weights: WeightFile, name: str, layer: QuantizedLinear) -> list[Any]:
    """Write codes and scales as they are stored, and return the nodes that compute the weight ``name`` of them.

    They depend on nothing else: ONNX Runtime runs them once, when it reads the graph.
    """
    how, node = layer.how, onnx.helper.make_node
    codes = layer.stored[WEIGHT].numpy()
    inputs, outputs = layer.in_features, layer.out_features
    nodes = []

    def apply(kind: str, *given: str, **attributes: Any) -> str:
        output = f"{name}/{len(nodes)}"
        nodes.append(node(kind, list(given), [output], name=output, **attributes))
        return output

    def constant(what: str, value: Any, dtype: Any = np.int64) -> str:
        return weights.add(f"{name}/{what}", np.array(value, dtype=dtype))

    values = apply("Cast", weights.add(f"{name}/codes", codes), to=onnx.TensorProto.FLOAT)
    if how.bits == 4:
        sixteen = constant("sixteen", 16.0, np.float32)
        high = apply("Floor", apply("Div", values, sixteen))
        low = apply("Sub", values, apply("Mul", high, sixteen))
        one = constant("one", [1])
        both = apply("Concat", apply("Unsqueeze", low, one), apply("Unsqueeze", high, one), axis=1)
        values = apply("Reshape", both, constant("pairs", [-1, outputs]))
        if inputs % 2:
            values = apply("Slice", values, constant("first", [0]), constant("end", [inputs]), constant("axis", [0]))
        if how.name in TABLES:
            table = weights.add(f"{name}/table", np.array(TABLES[how.name], dtype=np.float32))
            values = apply("Gather", table, apply("Cast", values, to=onnx.TensorProto.INT32))
        else:
            values = apply("Sub", values, constant("eight", 8.0, np.float32))
    factor = weights.add(f"{name}/scales", scales(layer))
    if how.groups(inputs) > 1:
        group = weights.add(f"{name}/groups", np.arange(inputs, dtype=np.int64) // how.group_size)
        factor = apply("Gather", factor, group, axis=0)
    nodes.append(node("Mul", [values, factor], [name], name=name))
    return nodes
