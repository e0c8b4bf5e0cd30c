"""A model's step as a static graph of Paddle: traced once, for any number of rows, tokens and columns of the cache."""

from __future__ import annotations

from pathlib import Path

import paddle
from paddle.static import InputSpec

from paddlesft.models.graph_directory import GraphRecord
from paddlesft.models.steps import DecoderStep, step_of

NAME = "model"


def write_static_graph(model: paddle.nn.Layer, directory: Path) -> GraphRecord:
    """Trace a model and write ``model.json`` (or ``model.pdmodel``, as the Paddle version has it) and its weights.

    Args:
        model: bare or with its adapter, in evaluation mode.
        directory: where to write; exists.

    Returns:
        What was written.
    """
    step = step_of(model)
    step.eval()
    step.forward = paddle.jit.to_static(step.forward, input_spec=input_specs(step), full_graph=True)
    with paddle.no_grad():
        paddle.jit.save(step, str(directory / NAME))
    program = next(
        directory / f"{NAME}{end}" for end in (".json", ".pdmodel") if (directory / f"{NAME}{end}").is_file()
    )
    shape = step.cache_shape
    return GraphRecord(
        "paddle", program.name, f"{NAME}.pdiparams", shape.num_layers, shape.num_heads, shape.head_dim, shape.dtype,
        paddle_version=paddle.__version__,
    )  # fmt: skip


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
