"""The sizes that a config gives its model's weights, and those that a file has."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.weights import NewTensor


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights.

    Attributes:
        shapes: shapes of all entries of its state by name.
        second_names: names of weights that are listed under another name too -> that other, first name.
        buffers: values of entries that are computed, not trained.
    """

    shapes: dict[str, tuple[int, ...]]
    second_names: dict[str, str]
    buffers: dict[str, np.ndarray]


def skeleton_of(config: Mapping[str, Any]) -> Skeleton:
    """Describe a model's weights; it is built without memory for them.

    Args:
        config: content of a PaddleNLP config.json.

    Raises:
        ModelDirectoryError: it is that of a model with quantized weights, which have other names and shapes.
    """
    import paddle
    import paddlenlp.transformers as zoo

    from paddlesft.models.quantized.directory import read_records

    if read_records(config, "config.json"):
        raise ModelDirectoryError(
            "config.json says that the weights are quantized; such models are neither divided nor put together from "
            "parts. Give the float model that this one was made from; a whole quantized directory can be used and "
            "copied as it is."
        )
    from paddlenlp.transformers.model_utils import no_init_weights

    family = family_of(config)
    full = getattr(zoo, family.config_class).from_dict(dict(config))
    family.fix_config(full)
    with paddle.LazyGuard(), no_init_weights(_enable=True):
        model = getattr(zoo, family.causal_lm)(full)
        if full.tie_word_embeddings:
            with contextlib.suppress(AttributeError):  # a head that has no weight of its own is tied already
                model.tie_weights()
    state = model.state_dict()
    first: dict[int, str] = {}
    for name in sorted(state, key=lambda name: not name.startswith(f"{family.base_prefix}.")):
        first.setdefault(id(state[name]), name)
    trained = {id(weight) for weight in model.parameters()}
    return Skeleton(
        shapes={name: tuple(weight.shape) for name, weight in state.items()},
        second_names={name: first[id(weight)] for name, weight in state.items() if first[id(weight)] != name},
        buffers={name: value.numpy() for name, value in state.items() if id(value) not in trained},
    )


def full_name(name: str, family: Family, skeleton: Skeleton) -> str:
    """Return a weight's name in the whole model; some pipeline classes leave the first part out."""
    longer = f"{family.base_prefix}.{name}"
    return longer if name not in skeleton.shapes and longer in skeleton.shapes else name


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by name; the model is built without memory for them.

    Args:
        config: content of a PaddleNLP config.json.
    """
    return skeleton_of(config).shapes


def check_shapes(tensors: Mapping[str, NewTensor], config: Mapping[str, Any], where: str, sizes: str) -> None:
    """Refuse weights of other sizes than their config gives them, before anything is written.

    Args:
        tensors: the weights under Paddle's names, in Paddle's orientation.
        config: content of a PaddleNLP config.json.
        where: names the source in the error.
        sizes: names what says the sizes.

    Raises:
        ModelDirectoryError: a weight has another shape than the model.
    """
    expected = expected_shapes(config)
    wrong = [name for name, tensor in tensors.items() if tuple(tensor.shape) != expected.get(name, tensor.shape)]
    if wrong:
        shown = (f"{name} is {list(tensors[name].shape)} instead of {list(expected[name])}" for name in wrong[:3])
        raise ModelDirectoryError(
            f"{where}: {len(wrong)} of {len(tensors)} weights have other sizes than {sizes}: {', '.join(shown)}"
            f"{', ...' if len(wrong) > 3 else ''}. They do not belong together: get the model again."
        )
