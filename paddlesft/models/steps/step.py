"""One call of a decoder over a cache that its caller owns.

PaddleNLP's attention layers return a new, longer cache in every step: all keys and values are copied for each token. A
``DecoderStep`` is given the cache as it lies in memory, wider than it is filled, and returns the keys and values of the
new tokens only; its caller writes them into place. What it computes is otherwise the same: the layers that hold weights
(embeddings, norms, linears with their adapters or codes) are the model's own; positions, scores and masks are ours.

No size depends on the data and nothing branches on it, so that one traced graph serves prompts and single tokens, any
number of rows and any width of the cache. What differs between rows is in the inputs, made by ``steps/inputs.py``.

Shape legend: b rows, s tokens of this call (the longest row's; shorter ones are padded on the right), m columns of the
cache, L layers, h query heads, n key/value heads, d size of one head, e hidden size, v vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import paddle
import paddle.nn.functional as F

from paddlesft.errors import UserError
from paddlesft.models.decoders import causal_lm, decoder_of
from paddlesft.models.families import family_of
from paddlesft.models.family import Family
from paddlesft.models.steps.cpu_operators import biased_softmax, matmul

MASKED = -1e30  # added to scores of keys that a query must not see; finite, and within float32


@dataclass(frozen=True)
class CacheShape:
    """Size of the cache of one column (token) of one row.

    Attributes:
        num_layers: decoder layers.
        num_heads: key/value heads, of this rank.
        head_dim: size of one head.
        dtype: of its numbers.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: str


class DecoderStep(paddle.nn.Layer):
    """Base of the families' steps; a subclass gives ``layers``, ``start``, ``layer`` and ``finish``.

    Args:
        model: a causal language model of paddlenlp, bare or inside ``LoRAModel`` or ``PrefixModelForCausalLM``; the
            prefix belongs into the first columns of the cache, see ``prefix_cache``.
    """

    two_part_positions: ClassVar[bool] = False  # position_ids are [b, 2, s]

    def __init__(self, model: paddle.nn.Layer) -> None:
        super().__init__()
        decoder = decoder_of(model)
        self.decoder = decoder  # no Layer: its model is registered below, once
        self.lm = decoder.lm
        self.config = decoder.lm.config

    @classmethod
    def refusal(cls, config: Any, family: Family) -> str:
        """Return why a model of the family cannot be computed step by step; "" where it can."""
        ranks = max(config.tensor_parallel_degree, 1)
        if getattr(config, "sequence_parallel", False):
            return "sequence_parallel: true shares the tokens of a row among ranks"
        if family.prefix_kv_heads(config) % ranks:
            return f"{family.prefix_kv_heads(config)} key/value heads cannot be divided among {ranks} ranks"
        return ""

    @property
    def body(self) -> paddle.nn.Layer:
        """The decoder below the head."""
        return self.decoder.body

    @property
    def group(self) -> int:
        """Query heads for each key/value head, h / n."""
        return self.decoder.family.num_heads(self.config) // self.decoder.family.prefix_kv_heads(self.config)

    def prefix_cache(self) -> np.ndarray | None:
        """Return the keys and values of the model's tuned prefix, [2 L, n, w, d]; None where it has none."""
        if self.decoder.prefix is None:
            return None
        batch_axis, token_axis = self.decoder.family.cache_batch_axis, self.decoder.family.cache_sequence_axis
        found = []
        with paddle.no_grad():
            for pair in self.decoder.prefix._get_past_key_values(1):
                for tensor in pair:
                    one = tensor.astype("float32").numpy().squeeze(batch_axis)
                    found.append(np.moveaxis(one, token_axis - (token_axis > batch_axis), 1))
        return np.stack(found)

    @property
    def cache_shape(self) -> CacheShape:
        """What a column of the cache holds."""
        config, family = self.config, self.decoder.family
        ranks = max(config.tensor_parallel_degree, 1)
        return CacheShape(
            family.num_layers(config), family.prefix_kv_heads(config) // ranks, family.head_dim(config),
            str(self.lm.config.dtype),
        )  # fmt: skip

    def forward(
        self,
        input_ids: paddle.Tensor,
        position_ids: paddle.Tensor,
        visible: paddle.Tensor,
        last: paddle.Tensor,
        past: Sequence[paddle.Tensor],
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Run the tokens of one call.

        Args:
            input_ids: int64 [b, s].
            position_ids: int64 [b, s], or [b, 2, s] where the family has positions of two parts.
            visible: bool [b, 1, s, m + s]; which columns of the cache, and which of the new tokens, each token sees;
                at least one.
            last: int64 [b]; the token of each row whose logits are asked for.
            past: 2 L tensors [b, n, m, d]: keys and values of each layer in turn; m at least 1, or 0 where no graph is
                traced.

        Returns:
            Logits [b, v], and keys and values of the new tokens [2 L, b, n, s, d].
        """
        bias = (visible.astype("float32") - 1.0) * -MASKED
        hidden, shared = self.start(input_ids, position_ids, bias)
        new = []
        for number, layer in enumerate(self.layers):
            hidden, keys, values = self.layer(layer, hidden, past[2 * number], past[2 * number + 1], *shared)
            new += [keys, values]
        hidden = self.finish(self.chosen(hidden, last))
        return self.logits(hidden)[:, 0], paddle.stack(new)

    @staticmethod
    def chosen(hidden: paddle.Tensor, last: paddle.Tensor) -> paddle.Tensor:
        """Take one token of each row: [b, s, e] and [b] to [b, 1, e]."""
        return paddle.take_along_axis(hidden, last.reshape([-1, 1, 1]), axis=1)

    @property
    @abstractmethod
    def layers(self) -> Sequence[paddle.nn.Layer]:
        """The model's decoder layers."""

    @abstractmethod
    def start(
        self, input_ids: paddle.Tensor, position_ids: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        """Return the first hidden states [b, s, e], and the tensors that every layer is given.

        Args:
            input_ids: see ``forward``.
            position_ids: see ``forward``.
            bias: float32 [b, 1, s, m + s], 0 on what is seen and ``MASKED`` elsewhere; usually one of those tensors.
        """

    @abstractmethod
    def layer(
        self,
        layer: paddle.nn.Layer,
        hidden: paddle.Tensor,
        past_keys: paddle.Tensor,
        past_values: paddle.Tensor,
        *shared: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Run one layer.

        Returns:
            Its output [b, s, e], and the new tokens' keys and values, each [b, n, s, d].
        """

    @abstractmethod
    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Apply what follows the last layer to [b, 1, e]."""

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Apply the head: [b, 1, e] to [b, 1, v]."""
        return self.decoder.logits(hidden)


def attention(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    past_keys: paddle.Tensor,
    past_values: paddle.Tensor,
    bias: paddle.Tensor,
    scale: float | None = None,
) -> paddle.Tensor:
    """Attend to the cache and to the new tokens, without putting the two into one tensor.

    Args:
        queries: [b, h, s, d].
        keys: [b, n, s, d], n divides h.
        values: [b, n, s, d].
        past_keys: [b, n, m, d].
        past_values: [b, n, m, d].
        bias: float32, added to the scores: [b, 1, h / n * s, m + s] as ``for_groups`` gives it, or [b, h, s, m + s]
            where n is h.
        scale: the scores' factor; None: 1 / sqrt(d).

    Returns:
        [b, s, h * d].
    """
    d, h, n = queries.shape[3], queries.shape[1], keys.shape[1]
    # The queries that share a key/value head stand one behind the other, so that the heads need not be repeated.
    together = (queries * (d**-0.5 if scale is None else scale)).reshape([0, n, -1, d])
    scores = matmul(together, keys, transpose_y=True)
    at_hand = paddle.in_dynamic_mode()  # asked first: while a graph is traced, sizes are tensors and become branches
    m = past_keys.shape[2] if at_hand else paddle.shape(past_keys)[2]
    if at_hand and m == 0:
        found = matmul(_weights(scores, bias), values)
    else:
        scores = paddle.concat([matmul(together, past_keys, transpose_y=True), scores], axis=-1)
        weights = _weights(scores, bias)
        if at_hand:
            past, new = paddle.split(weights, [m, -1], axis=-1)
        else:
            past, new = weights[:, :, :, :m], weights[:, :, :, m:]
        found = matmul(past, past_values) + matmul(new, values)
    # back to [b, s, h * d]: a head's queries are s rows of its group's
    if at_hand and queries.shape[2] == 1:
        return found.reshape([0, 1, h * d])
    return found.reshape([0, h, -1, d]).transpose([0, 2, 1, 3]).reshape([0, 0, h * d])


def _weights(scores: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """Return the softmax of scores and bias, computed in float32, in the scores' own type."""
    if scores.dtype == paddle.float32:
        return biased_softmax(scores, bias)
    return biased_softmax(scores.astype("float32"), bias).astype(scores.dtype)


def for_groups(bias: paddle.Tensor, group: int) -> paddle.Tensor:
    """Repeat a bias for the queries that share a key/value head.

    Args:
        bias: [b, 1, s, m + s].
        group: query heads for each key/value head, h / n.

    Returns:
        [b, 1, group * s, m + s].
    """
    return bias if group == 1 else paddle.concat([bias] * group, axis=2)


def gelu(x: paddle.Tensor, tanh_form: bool) -> paddle.Tensor:
    """Apply gelu, exact or in its tanh form, which graphs write out: paddle2onnx takes it for the exact one."""
    if not tanh_form or paddle.in_dynamic_mode():
        return F.gelu(x, approximate=tanh_form)
    return 0.5 * x * (1.0 + paddle.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def step_refusal(model: paddle.nn.Layer) -> str:
    """Return why a model, bare or inside LoRA and prefix wrappers, has no step; "" where it has one."""
    return step_refusal_of(causal_lm(model).config)


def step_refusal_of(config: Any) -> str:
    """Return why a model of this config has no step; "" where it has one."""
    family = family_of(config)
    if family.step is None:
        return f"the decoding of family {family.name} is not written as one step"
    return family.step_class().refusal(config, family)


def refuse_without_step(model: paddle.nn.Layer) -> None:
    """Refuse a model, bare or inside LoRA and prefix wrappers, of which no graph can be made.

    Raises:
        UserError: naming its family and the reason, see ``step_refusal``.
    """
    refusal = step_refusal(model)
    if refusal:
        raise UserError(
            f"There is no static graph of this model (family {decoder_of(model).family.name}): {refusal}. It runs in "
            "memory only: paddlesft predict --mode dynamic. paddlesft models shows which families can be exported."
        )


def step_of(model: paddle.nn.Layer) -> DecoderStep:
    """Return the step of a model, bare or inside LoRA and prefix wrappers, by its family's row.

    Raises:
        ModelDirectoryError: the model's type is in no row of the family table.
        UserError: it has no step, see ``refuse_without_step``.
    """
    refuse_without_step(model)
    return decoder_of(model).family.step_class()(model)


def heads(x: paddle.Tensor, count: int, size: int) -> paddle.Tensor:
    """Split [b, s, count * size] into [b, count, s, size]."""
    if paddle.in_dynamic_mode() and x.shape[1] == 1:
        return x.reshape([0, count, 1, size])
    return x.reshape([0, 0, count, size]).transpose([0, 2, 1, 3])
