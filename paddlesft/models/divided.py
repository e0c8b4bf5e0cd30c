"""Models built empty, whole or a rank's part of them, and filled from a directory that holds the whole model.

PaddleNLP's ``from_pretrained`` (3.0.0b4) does both, too. But it holds all weights twice while it loads, and it fails to
divide GLM and ChatGLM2 in safetensors and a GPT that stores its head, which is its embedding, a second time. Here one
rule serves all families, the one by which the parts are put together again (``tensor_division``), and a rank reads of
every weight what it keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import paddle
from paddlenlp.generation import GenerationConfig
from paddlenlp.transformers.model_utils import dtype_guard, no_init_weights

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_object
from paddlesft.models.family import Family
from paddlesft.models.filling import fill
from paddlesft.models.shapes import skeleton_of
from paddlesft.models.stored import stored_weights
from paddlesft.models.tensor_division import division_of_whole, tensor_parallel_actions
from paddlesft.models.weights import NewTensor, read_weights

GENERATION_CONFIG = "generation_config.json"


def empty_model(model_class: Any, config: Any, directory: Path, dtype: str) -> Any:
    """Build what this rank computes with, its weights not filled in yet.

    Args:
        model_class: of ``paddlenlp.transformers``.
        config: its config, which says which part this rank is; its ``dtype`` is set.
        directory: the whole model's, for its generation config.
        dtype: type of the weights.

    Raises:
        ModelDirectoryError: generation_config.json is damaged.
    """
    config.dtype = dtype
    with dtype_guard(dtype), no_init_weights(_enable=True):
        model = model_class(config)
    if (directory / GENERATION_CONFIG).is_file():
        read_object(directory / GENERATION_CONFIG)  # refuses what is no JSON in words
        model.generation_config = GenerationConfig.from_pretrained(str(directory))
    return model


def fill_parts(
    own: Mapping[str, paddle.Tensor], directory: Path, config: Mapping[str, Any], family: Family, degree: int, rank: int
) -> set[str]:
    """Put stored weights, or a rank's parts of them, into tensors.

    Args:
        own: this rank's tensors by their names in the whole model; those that are not stored are left as they are.
        directory: holds the whole model in Paddle's layout.
        config: content of the whole model's config.json.
        family: its row of the family table.
        degree: number of ranks that share each layer.
        rank: which of them this is.

    Returns:
        The names of all stored weights.

    Raises:
        ModelDirectoryError: weights are of other sizes than the config says, or are divided in a way that is not known.
    """
    stored = _stored(directory)
    shapes = skeleton_of(config).shapes
    names = [name for name in own if name in stored]
    _check_sizes({name: (stored[name].shape, shapes[name]) for name in names}, directory)
    actions = tensor_parallel_actions(config, family, [*shapes], degree) if degree > 1 else {}
    unknown = [name for name in names if tuple(own[name].shape) != shapes[name] and name not in actions]
    _refuse(directory, unknown, "there is no rule by which {} of this model are divided among ranks")
    for name in names:
        tensor, array = own[name], stored[name].make()
        if tuple(tensor.shape) != array.shape:  # whole where the degree does not divide it
            array = division_of_whole(actions[name], array.shape, degree).part(array, rank, degree)
        fill(tensor, array)
    return set(stored)


def _stored(directory: Path) -> Mapping[str, NewTensor]:
    """List the weights of a directory; of those in safetensors, only what is looked at is read."""
    tensors, _ = read_weights(directory)
    if not tensors:
        return stored_weights(directory)
    return {name: NewTensor(tensor.dtype, tensor.shape, tensor.mapped) for name, tensor in tensors.items()}


def _check_sizes(sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], directory: Path) -> None:
    wrong = [name for name, (has, wanted) in sizes.items() if tuple(has) != tuple(wanted)]
    refuse_other_sizes(directory, [(name, *map(list, sizes[name])) for name in wrong])


def refuse_other_sizes(directory: Path, found: list[tuple[str, Any, Any]]) -> None:
    """Refuse a directory whose weights do not fit its config.

    Args:
        directory: the model's.
        found: name, size and wanted size of each such weight; nothing happens where there is none.

    Raises:
        ModelDirectoryError: there are some.
    """
    if found:
        shown = ", ".join(f"{name} is {has} instead of {wanted}" for name, has, wanted in found[:3])
        raise ModelDirectoryError(
            f"{directory}: {len(found)} weights have other sizes than its config.json says: {shown}"
            f"{', ...' if len(found) > 3 else ''}. They do not belong together: get the model again."
        )


def refuse_homeless(directory: Path, own: Collection[str], stored: Collection[str], config: Mapping[str, Any]) -> None:
    """Refuse a model with weights that PaddleNLP's layers for one process have and its divided ones lack.

    Args:
        directory: the model's.
        own: names that this rank's state has.
        stored: names of the stored weights.
        config: content of the whole model's config.json.

    Raises:
        ModelDirectoryError: there are some: biases of Qwen 1's feed-forward block (``no_bias: false``).
    """
    shapes = skeleton_of(config).shapes
    lost = sorted(name for name in stored if name in shapes and name not in own)
    _refuse(directory, lost, "PaddleNLP's layers that are divided among ranks have no place for {} of this model")


def _refuse(directory: Path, names: list[str], what: str) -> None:
    if names:
        shown = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        raise ModelDirectoryError(
            f"{directory}: {what.format(f'{len(names)} weights')}: {shown}. Set tensor_parallel_degree to 1; sharding: "
            "stage3 divides all weights."
        )
