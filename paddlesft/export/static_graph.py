"""A model's step as a static graph of Paddle: traced once, for any number of rows, tokens and columns of the cache."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import paddle
from paddle.static import InputSpec

from paddlesft.models.graph_directory import GraphRecord
from paddlesft.models.steps import DecoderStep, step_of
from paddlesft.quirks import static_out_warning

NAME = "model"
WEIGHTS_END = ".pdiparams"
# the new IR's first: Paddle versions that know it write it unless the environment asks for the old one
PROGRAM_ENDS = {".json": "new IR", ".pdmodel": "old IR"}


def write_static_graph(model: paddle.nn.Layer, directory: Path) -> GraphRecord:
    """Trace a model and write ``model.json`` (or ``model.pdmodel``, as the Paddle version has it) and its weights.

    Args:
        model: bare or with its adapter, in evaluation mode.
        directory: where to write; exists.

    Returns:
        What was written.
    """
    step = step_of(model)
    program = save_program(step, input_specs(step), directory / NAME)
    shape = step.cache_shape
    return GraphRecord(
        "paddle", program, f"{NAME}{WEIGHTS_END}", shape.num_layers, shape.num_heads, shape.head_dim, shape.dtype,
        paddle_version=paddle.__version__,
    )  # fmt: skip


def save_program(layer: paddle.nn.Layer, specs: list, path: Path) -> str:
    """Trace a layer's forward pass and write its program, and its weights where it has any.

    Args:
        layer: what is traced.
        specs: of its arguments.
        path: of the files, without the end of their names.

    Returns:
        The name of the program's file: ``.json`` of the new IR or ``.pdmodel`` of the old one, whichever the installed
        version of Paddle writes.
    """
    layer.eval()
    layer.forward = paddle.jit.to_static(layer.forward, input_spec=specs, full_graph=True)
    with paddle.no_grad(), _quietly():
        paddle.jit.save(layer, str(path))
    return next(path.name + end for end in PROGRAM_ENDS if path.with_name(path.name + end).is_file())


def input_specs(step: DecoderStep) -> list:
    """Return the shapes of ``DecoderStep.forward``'s arguments; None where any size is possible."""
    shape = step.cache_shape
    positions = [None, 2, None] if step.two_part_positions else [None, None]
    past = [None, shape.num_heads, None, shape.head_dim]
    return [
        InputSpec([None, None], "int64", "input_ids"),
        InputSpec(positions, "int64", "position_ids"),
        InputSpec([None, 1, None, None], "bool", "visible"),
        InputSpec([None], "int64", "last"),
        [InputSpec(past, shape.dtype, f"past_{i}") for i in range(2 * shape.num_layers)],
    ]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep away what Paddle says of every trace: about places, programs without weights, and sums in place."""
    with warnings.catch_warnings(), static_out_warning.silenced():
        warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")
        warnings.filterwarnings("ignore", message="no variable in your model")
        warnings.filterwarnings("ignore", message="In static graph mode, addmm_")
        yield
