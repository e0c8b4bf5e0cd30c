"""The sizes that a config gives its model's weights, and those that a file has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import family_of
from paddlesft.models.weights import NewTensor


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by name; the model is built without memory for them.

    Args:
        config: content of a PaddleNLP config.json.
    """
    import paddle
    import paddlenlp.transformers as zoo
    from paddlenlp.transformers.model_utils import no_init_weights

    family = family_of(config)
    full = getattr(zoo, family.config_class).from_dict(dict(config))
    family.fix_config(full)
    with paddle.LazyGuard(), no_init_weights(_enable=True):
        model = getattr(zoo, family.causal_lm)(full)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


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
