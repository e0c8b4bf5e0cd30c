"""One way to run every decoder: token ids in, hidden states and cache out.

Shape legend: b rows, s tokens of this call, p tokens of earlier calls (in the cache), w width of a tuned prefix,
h hidden size, v vocabulary.

Training, evaluation, generation and proofs go through ``decoder_of(model)``. ``CausalDecoder`` serves the plain case:
every token sees what stands before it, positions count from 0, the cache is a list of (keys, values), one per layer.
Families that differ have a subclass each in a file of this room, which overrides the parts that differ.

Where layers are divided among ranks (tensor parallelism), every one of them calls the same with the same rows, and gets
the same; also where they share the tokens between the layers (sequence parallelism).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle.distributed import fleet
from paddle.distributed.collective import _c_concat, _c_identity
from paddle.distributed.fleet.utils.sequence_parallel_utils import GatherOp
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.models.decoders.masks import block_diagonal_mask
from paddlesft.models.families import family_of


class CausalDecoder:
    """Runs the decoder of one model.

    Args:
        lm: the causal language model of paddlenlp.
        prefix: the ``PrefixModelForCausalLM`` around it, if it has a tuned prefix.
    """

    cache_argument = "past_key_values"

    def __init__(self, lm: paddle.nn.Layer, prefix: PrefixModelForCausalLM | None = None) -> None:
        self.lm = lm
        self.family = family_of(lm.config)
        self.body = getattr(lm, self.family.base_prefix)
        self.prefix = prefix
        self.prefix_length = prefix.prefix_config.num_prefix_tokens if prefix is not None else 0

    def run(
        self,
        input_ids: paddle.Tensor,
        mask: paddle.Tensor | None = None,
        segment_ids: paddle.Tensor | None = None,
        position_ids: paddle.Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[paddle.Tensor, Any]:
        """Run the decoder, with its adapter.

        Args:
            input_ids: int64 [b, s].
            mask: int64 [b, p + s], 1 on real tokens and 0 on padding, which may be on either side; None: no padding.
            segment_ids: int64 [b, s] of packed rows, 1..n, 0 on padding; in place of ``mask``.
            position_ids: what ``positions`` or ``next_positions`` gave, or of packed rows int64 [b, s]; needed with
                padding on the left, with a cache and with packed rows.
            cache: what an earlier call returned; None at first. The tuned prefix is put in front of the first call.
            use_cache: return a cache to go on with.

        Returns:
            Hidden states [b, s, h] after the final norm, and the cache (None without ``use_cache``).
        """
        if cache is None and self.prefix is not None:
            cache = self.prefix._get_past_key_values(input_ids.shape[0])
            if position_ids is None:  # some models would count the prefix: training has to count as generation does
                position_ids = self.positions(input_ids, paddle.ones_like(input_ids) if mask is None else mask)
        if segment_ids is not None:
            attention_mask = self.packed_attention_mask(segment_ids)
        else:
            attention_mask = self.attention_mask(input_ids, mask)
        return self.call(input_ids, attention_mask, position_ids, cache, use_cache)

    def positions(self, input_ids: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Return the positions of a batch of prompts, padding not counted.

        Args:
            input_ids: int64 [b, s].
            mask: int64 [b, s].

        Returns:
            int64 [b, s].
        """
        return paddle.clip(paddle.cumsum(mask, axis=-1) - 1, min=0)

    def next_positions(self, position_ids: paddle.Tensor) -> paddle.Tensor:
        """Return the positions of the tokens that follow the last ones, int64 [b, 1]."""
        return position_ids[:, -1:] + 1

    def attention_mask(self, input_ids: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor | None:
        """Return what the model takes for ``attention_mask``; here 2-D over all keys: int64 [b, w + p + s]."""
        return mask if mask is None else self.with_prefix(mask)

    def packed_attention_mask(self, segment_ids: paddle.Tensor) -> paddle.Tensor:
        """Return what the model takes for packed rows; here bool [b, 1, s, w + s]."""
        return block_diagonal_mask(segment_ids, self.prefix_length)

    def with_prefix(self, mask: paddle.Tensor) -> paddle.Tensor:
        """Put ones for the tuned prefix in front of a mask [b, p + s]."""
        if not self.prefix_length:
            return mask
        return paddle.concat([paddle.ones([mask.shape[0], self.prefix_length], dtype=mask.dtype), mask], axis=-1)

    def call(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor | None,
        position_ids: paddle.Tensor | None,
        cache: Any,
        use_cache: bool,
    ) -> tuple[paddle.Tensor, Any]:
        """Call the decoder by the names it uses; see ``run``."""
        given = {"attention_mask": attention_mask, "position_ids": position_ids, self.cache_argument: cache}
        self.announce_length(input_ids.shape[1])
        output = self.body(input_ids, use_cache=use_cache, **{k: v for k, v in given.items() if v is not None})
        if isinstance(output, tuple | list):
            hidden, new_cache = output[0], output[1] if use_cache else None
        else:
            hidden, new_cache = getattr(output, "last_hidden_state", output), getattr(output, "past_key_values", None)
        return self.gathered(hidden, input_ids.shape), new_cache

    def announce_length(self, length: int) -> None:
        """Tell layers that share tokens among ranks how long the rows are: they get them one behind the other."""
        if self.lm.config.sequence_parallel:
            for layer in self.body.sublayers():
                if "seq_length" in layer.__dict__:
                    layer.seq_length = length

    def gathered(self, hidden: paddle.Tensor, shape: Sequence[int]) -> paddle.Tensor:
        """Put hidden states together that ranks share by tokens (sequence parallelism).

        Args:
            hidden: what the decoder's last layer gave: then [b * s / ranks, h].
            shape: b and s.
        """
        if not self.lm.config.sequence_parallel:
            return hidden
        return self.as_rows(GatherOp.apply(hidden), *shape)

    def as_rows(self, tokens: paddle.Tensor, b: int, s: int) -> paddle.Tensor:
        """Give tokens that stand one behind the other the shape that hidden states of the model have otherwise."""
        return tokens.reshape([b, s, -1])

    def rows_first(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Turn hidden states, as the family's layers hand them on, into [b, s, h]."""
        return hidden

    def check_switches(self) -> None:
        """Refuse switches with which the family's layers would compute something else; see ``model_switches``."""

    def as_prompt(self, token_ids: Sequence[int]) -> list[int]:
        """Return any token ids in a form that the family can read, to compare models on; here as they are."""
        return list(token_ids)

    @property
    def head(self) -> paddle.nn.Layer:
        """The layer that turns hidden states into logits."""
        return self.lm.lm_head

    @property
    def head_matrix(self) -> tuple[paddle.Tensor, bool]:
        """The head's matrix on this rank, and whether it has the form of an embedding: [v, h] instead of [h, v]."""
        head = self.head
        if hasattr(head, "decoder_weight"):
            return head.decoder_weight, True
        embedding = self.body.get_input_embeddings()
        if paddle.in_dynamic_mode():
            return head.weight, head.weight is embedding.weight
        return head.weight, _held(head) is _held(embedding)

    @property
    def vocabulary_is_split(self) -> bool:
        """Whether the head of this rank knows a part of the vocabulary only (tensor parallelism)."""
        return max(self.lm.config.tensor_parallel_degree, 1) > 1 and bool(self._own_matrix().is_distributed)

    def _own_matrix(self) -> paddle.Tensor:
        return self.head_matrix[0] if paddle.in_dynamic_mode() else _held(self.head)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Turn hidden states [b, s, h] into logits [b, s, v], of the whole vocabulary on every rank."""
        if max(self.lm.config.tensor_parallel_degree, 1) == 1:
            return self.apply_head(hidden)
        if self.vocabulary_is_split:
            return _c_concat(self.own_logits(hidden), group=tensor_parallel_group())
        matrix, as_embedding = self.head_matrix
        return paddle.matmul(hidden, matrix, transpose_y=as_embedding)

    def own_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Turn hidden states [b, s, h] into the logits of this rank's part of the vocabulary."""
        matrix, as_embedding = self.head_matrix
        hidden = _c_identity(hidden, group=tensor_parallel_group())  # whose gradients come from all parts
        return paddle.matmul(hidden, matrix, transpose_y=as_embedding)

    def apply_head(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Call the head of a model that no other rank shares."""
        return self.head(hidden)


def _held(layer: paddle.nn.Layer) -> paddle.Tensor:
    """Return a layer's matrix itself; while a graph is traced, its attribute is another object at each access."""
    names = ("decoder_weight", "weight")
    held = [layer._parameters[name] for name in names if name in layer._parameters]
    return held[0] if held else layer.weight


def tensor_parallel_group() -> Any:
    """Return the ranks that share this rank's layers."""
    return fleet.get_hybrid_communicate_group().get_model_parallel_group()


def causal_lm(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return the causal language model inside LoRA, prefix and data-parallel wrappers (the model itself when bare)."""
    while isinstance(model, LoRAModel | PrefixModelForCausalLM | paddle.DataParallel):
        model = model._layers if isinstance(model, paddle.DataParallel) else model.model
    return model


def decoder_of(model: paddle.nn.Layer) -> CausalDecoder:
    """Return what runs a model, bare or inside LoRA, prefix and data-parallel wrappers, by its family's convention.

    Raises:
        ModelDirectoryError: the model's type is in no row of the family table.
    """
    lm, prefix, inner = causal_lm(model), None, model
    while inner is not lm:
        prefix = inner if isinstance(inner, PrefixModelForCausalLM) else prefix
        inner = inner._layers if isinstance(inner, paddle.DataParallel) else inner.model
    return family_of(lm.config).decoder_class()(lm, prefix)
