"""Which parts of a decoder layer are quantized, and where their inputs come from."""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import nn

from paddlesft.errors import UserError
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.linear import QuantizedLinear
from paddlesft.quantization.layer_walk import LayerWalk
from paddlesft.quantization.recipe import Recipe


@dataclass(frozen=True)
class Chosen:
    """A Linear that will be quantized.

    Attributes:
        name: in the whole model.
        layer: the Linear.
        how: the format that its weight gets.
    """

    name: str
    layer: nn.Linear
    how: WeightFormat


def chosen_linears(name: str, layer: nn.Layer, recipe: Recipe) -> list[Chosen]:
    """Return the Linear layers of a decoder layer that a recipe takes, in the order of the model.

    Args:
        name: the decoder layer's, in the whole model.
        layer: the decoder layer.
        recipe: says which stay as they are.

    Raises:
        UserError: a part with a matrix is no Linear, and the recipe does not leave it as it is.
    """
    found = []
    for part, sublayer in layer.named_sublayers(include_self=True):
        whole = f"{name}.{part}" if part else name
        how = recipe.format_of(whole)
        if how is None:
            continue
        if type(sublayer) is nn.Linear:
            found.append(Chosen(whole, sublayer, how))
        else:
            _refuse_matrices(whole, sublayer)
    return found


def _refuse_matrices(name: str, part: nn.Layer) -> None:
    if isinstance(part, QuantizedLinear):
        raise UserError(
            f"{name} is quantized already ({part.how.name}). Give the model in float32, bfloat16 or float16: rounding "
            "twice adds both errors."
        )
    matrices = [
        f"{key} {list(tensor.shape)}"
        for key, tensor in part.named_parameters(include_sublayers=False)
        if tensor.ndim > 1
    ]
    if matrices and not isinstance(part, nn.Embedding):  # which looks rows up: there is no product
        raise UserError(
            f"{name} is a {type(part).__name__} ({', '.join(matrices)}), which cannot be quantized: only Linear can. "
            f'Leave it as it is with skip_list_names: [".*{name.rpartition(".")[2]}"]. Where it is an adapter, merge '
            "that first."
        )


class Sources:
    """Where the inputs of some Linear layers come from, seen on the first calibration batch.

    Args:
        walk: whose batches stand in front of the decoder layer.
        layer: the decoder layer.
        linears: parts of it.

    Raises:
        UserError: one of them is not called: the model uses its weight without it; or it does not get whole rows.
    """

    def __init__(self, walk: LayerWalk, layer: nn.Layer, linears: list[Chosen]) -> None:
        normed: list[paddle.Tensor] = []
        inputs: dict[str, paddle.Tensor] = {}  # all kept until the end: a tensor's place in memory is used again
        handles = [
            part.register_forward_post_hook(lambda _, inputs, output: normed.append(output))
            for part in layer.sublayers()
            if "norm" in type(part).__name__.lower()
        ]
        for one in linears:

            def note(_: nn.Layer, arguments: tuple[paddle.Tensor, ...], name: str = one.name) -> None:
                inputs[name] = arguments[0]

            handles.append(one.layer.register_forward_pre_hook(note))
        try:
            with paddle.no_grad():
                walk.calls[0](layer)
        finally:
            for handle in handles:
                handle.remove()
        for one in linears:
            if one.name not in inputs:
                raise UserError(
                    f"{one.name} was not called when the model computed a calibration batch, so there is nothing to "
                    "learn about its inputs. Leave it as it is with skip_list_names."
                )
        flat = [one.name for one in linears if inputs[one.name].ndim != 3]
        if flat:
            parts = ", ".join(f'".*{part}"' for part in dict.fromkeys(name.rpartition(".")[2] for name in flat))
            raise UserError(
                f"{flat[0]} gets an input of shape {list(inputs[flat[0]].shape)} instead of rows, positions and "
                "features: tokens picked from all rows, as experts get them, which cannot be calibrated. Leave such "
                f"layers as they are with skip_list_names: [{parts}]."
            )
        self.behind_norm = {name for name, x in inputs.items() if any(x is output for output in normed)}
        first: dict[int, str] = {}
        self.same_as = {name: first.setdefault(id(x), name) for name, x in inputs.items()}
