"""A model's step as an ONNX graph: traced by Paddle without its weights, converted by paddle2onnx, weights added by us.

Float weights and everything around them are operators of the ONNX standard. Quantized weights are stored as the codes
and scales that they are, and there are two ways to compute with them:

- exact: the weight is computed of them when ONNX Runtime reads the graph. Tokens are those of the model in memory;
  speed and main memory those of floats.
- fast: ``com.microsoft.MatMulNBits`` multiplies codes, and rounds activations to 8 bits for each block of inputs.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlesft import __version__
from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.export.onnx_packages import onnx, paddle2onnx
from paddlesft.export.onnx_weights import WeightFile, add_dequantized, block_size, in_blocks, unpacked
from paddlesft.export.static_graph import save_program
from paddlesft.export.weights_as_inputs import (
    STANDS_FOR_CODES,
    STANDS_FOR_OUTLIERS,
    STANDS_FOR_WEIGHT,
    WeightsAsInputs,
)
from paddlesft.models.graph_directory import GraphRecord
from paddlesft.models.quantized.formats import INTEGERS
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.models.steps import DecoderStep, step_of

logger = logging.getLogger("paddlesft")

PROGRAM, WEIGHTS = "model.onnx", "model.onnx.data"
OUTPUTS = ("logits", "new_cache")
OPSET = 17
EXACT, FAST = "exact", "fast"
INT8_PER_BLOCK = 4  # accuracy_level of MatMulNBits: activations are rounded to 8 bits


def write_onnx_graph(model: paddle.nn.Layer, directory: Path, compute: str = EXACT) -> GraphRecord:
    """Write ``model.onnx`` and its weights ``model.onnx.data``.

    Args:
        model: bare or with its adapter, in evaluation mode, float32.
        directory: where to write; exists.
        compute: with quantized weights, see above.

    Returns:
        What was written.

    Raises:
        UserError: the model's type is not float32, or a quantized layer cannot be computed in this way.
        PaddleSFTError: paddle2onnx does not convert the model.
    """
    step = step_of(model)
    shape = step.cache_shape
    if shape.dtype != "float32":
        raise UserError(
            f"The model's type is {shape.dtype}; ONNX graphs are written in float32, for CPUs. Set dtype to float32."
        )
    traced = WeightsAsInputs(step)
    if compute == FAST and not any(name.endswith(STANDS_FOR_WEIGHT) for name in traced.quantized):
        raise UserError(
            "onnx_compute fast is for weights in int8 or int4 whose layers do not round activations; this model has "
            f"none. Leave the key out ({EXACT}), or export a directory that paddlesft quantize made."
        )
    graph_model = convert(traced)
    graph = graph_model.graph
    bypass_identities(graph)
    divide_by_roots(graph)
    with WeightFile(directory / WEIGHTS, graph) as weights:
        replace_products(graph, traced.quantized, weights, compute)
        used = {name for node in graph.node for name in node.input}
        for name, tensor in traced.tensors.items():
            if name in used:
                weights.add(name, tensor.numpy())
    rounds = any(node.op_type == "MatMulNBits" for node in graph.node)
    finish(graph_model, step)
    onnx.save(graph_model, str(directory / PROGRAM))
    onnx.checker.check_model(str(directory / PROGRAM))
    return GraphRecord(
        "onnx", PROGRAM, WEIGHTS, shape.num_layers, shape.num_heads, shape.head_dim, shape.dtype,
        rounds_activations=rounds, paddle_version=paddle.__version__,
    )  # fmt: skip


def convert(traced: WeightsAsInputs) -> Any:
    """Trace and convert a step without its weights.

    Raises:
        PaddleSFTError: an operator has no counterpart.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "step"
        try:
            program = save_program(traced, traced.specs(), path)
        finally:
            traced.restore()
        made, said = _in_own_process(path.with_name(program))
    if made is None:
        raise PaddleSFTError(
            f"paddle2onnx {paddle2onnx.__version__} cannot convert this model of the family "
            f"{traced.step.decoder.family.name}: {said}. paddlesft export --format paddle writes a graph for "
            "paddle.inference."
        )
    return onnx.load_from_string(made)


def _in_own_process(program: Path) -> tuple[bytes | None, str]:
    """Convert a program in a copy of this process: paddle2onnx aborts where an operator has no counterpart.

    Args:
        program: its file; other files are written beside it.

    Returns:
        The ONNX model, None where there is none; and the last of what was printed meanwhile.
    """
    printed, result = program.with_name("printed"), program.with_name("result")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:  # verbose: else the operators are not named
            with printed.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            paddle.disable_signal_handler()  # its report of an abort would stand last
            made = paddle2onnx.export(
                str(program), str(program.with_name("step.pdiparams")), None, opset_version=OPSET,
                auto_upgrade_opset=False, verbose=True, enable_onnx_checker=False, optimize_tool="None",
            )  # fmt: skip
            result.write_bytes(made)
            code = 0
        except BaseException as error:  # whatever it is, the copy must not run what stands behind this
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    said = printed.read_text(encoding="utf-8", errors="replace") if printed.is_file() else ""
    for line in filter(str.strip, said.splitlines()):
        logger.debug("%s", line)
    return result.read_bytes() if status == 0 else None, " ".join(said.split())[-600:].rstrip(".")


def bypass_identities(graph: Any) -> None:
    """Let nodes take what an Identity would hand them; those that make outputs stay."""
    outputs = {output.name for output in graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in graph.node:  # in topological order
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def divide_by_roots(graph: Any) -> None:
    """Write x * (1 / root) as x / root: ONNX Runtime knows root-mean-square norms by that."""
    inverse = {node.output[0]: node for node in graph.node if node.op_type == "Reciprocal"}
    for node in graph.node:
        if node.op_type == "Mul":
            for number in (0, 1):
                if node.input[number] in inverse:
                    root = inverse[node.input[number]].input[0]
                    node.op_type, node.input[:] = "Div", [node.input[1 - number], root]
                    break
    used = {name for node in graph.node for name in node.input}
    kept = [node for node in graph.node if node.op_type != "Reciprocal" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def replace_products(graph: Any, layers: dict[str, QuantizedLinear], weights: WeightFile, compute: str) -> None:
    """Write codes and scales in the place of the matrices that stand for them.

    Raises:
        UserError: a layer cannot be computed as asked.
    """
    products = {node.input[1]: node for node in graph.node if node.op_type == "MatMul" and node.input[1] in layers}
    first = []
    for name, layer in layers.items():
        if name.endswith(STANDS_FOR_WEIGHT):
            if compute == FAST:
                _multiply_blocks(products[name], name, layer, weights)
            else:
                first += add_dequantized(weights, name, layer)
    changed = [node for nodes in (_as_integers(node, layers, weights) for node in graph.node) for node in nodes]
    for name in layers:
        if name.endswith(STANDS_FOR_OUTLIERS):
            codes = f"{name.removesuffix(STANDS_FOR_OUTLIERS)}{STANDS_FOR_CODES}/codes"
            first.append(onnx.helper.make_node("Cast", [codes], [name], name=name, to=onnx.TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*first, *changed])


def _multiply_blocks(product: Any, name: str, layer: QuantizedLinear, weights: WeightFile) -> None:
    size = block_size(layer)
    where = f"Layer {name.removesuffix(STANDS_FOR_WEIGHT)} has weights in {layer.how.name}"
    instead = f"Set onnx_compute to {EXACT}."
    if layer.how.name not in INTEGERS:
        raise UserError(
            f"{where}, which no fast operator of ONNX Runtime knows; it knows {' and '.join(INTEGERS)}. {instead}"
        )
    if size is None:
        raise UserError(
            f"{where} with group_size {layer.how.group_size}: the fast operator takes groups of whole blocks of 16 "
            f"inputs. {instead}"
        )
    codes, factors = in_blocks(layer, size)
    product.op_type, product.domain = "MatMulNBits", "com.microsoft"
    product.input[:] = [product.input[0], weights.add(f"{name}/codes", codes), weights.add(f"{name}/scales", factors)]
    del product.attribute[:]
    values = {
        "K": layer.in_features, "N": layer.out_features, "bits": layer.how.bits, "block_size": size,
        "accuracy_level": INT8_PER_BLOCK,
    }  # fmt: skip
    product.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in values.items())


def _as_integers(node: Any, layers: dict[str, QuantizedLinear], weights: WeightFile) -> list[Any]:
    """Return the nodes that multiply rounded activations by codes in integers, where this node stands for that."""
    if node.op_type != "MatMul" or not node.input[1].endswith(STANDS_FOR_CODES):
        return [node]
    name, output, make = node.input[1], node.output[0], onnx.helper.make_node
    codes = unpacked(layers[name]).astype(np.int8) - (8 if layers[name].how.bits == 4 else 0)
    stored = weights.add(f"{name}/codes", codes.astype(np.int8))
    return [
        make("Cast", [node.input[0]], [f"{output}/8"], name=f"{output}/8", to=onnx.TensorProto.INT8),
        make("MatMulInteger", [f"{output}/8", stored], [f"{output}/32"], name=f"{output}/32"),
        make("Cast", [f"{output}/32"], [output], name=output, to=onnx.TensorProto.FLOAT),
    ]


def finish(model: Any, step: DecoderStep) -> None:
    """Give inputs and outputs their names and sizes, and say who wrote the graph."""
    graph, shape = model.graph, step.cache_shape
    given = {initializer.name for initializer in graph.initializer}
    wanted = ["input_ids", "position_ids", "visible", "last"]
    wanted += [f"past_{number}" for number in range(2 * shape.num_layers)]
    by_name = {one.name: one for one in graph.input if one.name not in given}
    integer, make = onnx.TensorProto.INT64, onnx.helper.make_tensor_value_info
    positions = ["rows", 2, "tokens"] if step.two_part_positions else ["rows", "tokens"]
    known = {
        "input_ids": (integer, ["rows", "tokens"]),
        "position_ids": (integer, positions),
        "visible": (onnx.TensorProto.BOOL, ["rows", 1, "tokens", "columns_and_tokens"]),
        "last": (integer, ["rows"]),
    }
    past = (onnx.TensorProto.FLOAT, ["rows", shape.num_heads, "columns", shape.head_dim])
    del graph.input[:]
    graph.input.extend(make(name, *known.get(name, past)) for name in wanted if name in by_name)
    renamed = dict(zip((output.name for output in graph.output), OUTPUTS))
    for node in graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    new = ["new_keys_and_values", "rows", shape.num_heads, "tokens", shape.head_dim]
    del graph.output[:]
    graph.output.extend(
        [make(OUTPUTS[0], past[0], ["rows", "vocabulary"]), make(OUTPUTS[1], past[0], [2 * shape.num_layers, *new[1:]])]
    )
    del graph.value_info[:]
    graph.name = "decoder_step"
    del model.opset_import[:]
    domains = {node.domain for node in graph.node}
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    if "com.microsoft" in domains:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.ir_version = 8  # of ONNX 1.12, which brought the operators of opset 17
    model.producer_name, model.producer_version = "paddlesft", __version__
