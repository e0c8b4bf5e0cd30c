"""What a decode loop drives: a model in memory, or a static graph, that computes one call over a cache it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import paddle

from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.models.steps import CacheShape, step_of
from paddlesft.models.steps.inputs import CausalInputs, StepInputs
from paddlesft.quirks import released_memory


class StepModel(Protocol):
    """A model, its adapter included, that the decode loop can run.

    Attributes:
        config: PaddleNLP's config of the model.
        cache_shape: what a column of the cache holds.
        prefixes: keys and values of tuned prefixes, [2 L, n, w, d], by the adapter's name; None: of every row that
            names no adapter.
        inputs: makes the arguments of a call.
        cache_on_device: whether the cache is a tensor of paddle on the device that is set, not an array.
    """

    config: Any
    cache_shape: CacheShape
    prefixes: Mapping[str | None, np.ndarray]
    inputs: CausalInputs
    cache_on_device: bool

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[Any, Any]:
        """Run one call; see ``DecoderStep.forward``.

        Returns:
            Logits [b, v], and keys and values of the new tokens [2 L, b, n, s, d]; arrays or tensors.
        """


class EagerModel:
    """A PaddleNLP model in memory, bare or inside ``LoRAModel`` or ``PrefixModelForCausalLM``."""

    def __init__(self, model: paddle.nn.Layer, pad_token_id: int = 0) -> None:
        self.config = model.config
        self._step = step_of(model)
        self.cache_shape = self._step.cache_shape
        prefix = self._step.prefix_cache()
        self.prefixes = {} if prefix is None else {None: prefix}
        self.inputs = self._step.decoder.family.step_inputs()(self.config.to_dict(), pad_token_id)

        self.cache_on_device = self.cache_shape.dtype == "bfloat16" or not paddle.get_device().startswith("cpu")
        if not self.cache_on_device:
            released_memory.apply()

    @paddle.no_grad()
    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[paddle.Tensor, paddle.Tensor]:
        visible, past = inputs.visible, cache.tensors()
        if cache.columns == 1 and not visible[..., 0].any():  # nothing was run yet: there is no past to attend to
            visible, past = visible[..., 1:], [tensor[:, :, :0] for tensor in past]
        arrays = (inputs.input_ids, inputs.position_ids, np.ascontiguousarray(visible), inputs.last)
        return self._step(*map(paddle.to_tensor, arrays), past)
