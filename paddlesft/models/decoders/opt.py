"""OPT: learned positions that begin at the third row of their table, keys and values as [b, heads, k, head size].

PaddleNLP's ``OPTModel.forward`` (3.0.0b4) is not used, because it takes positions from the mask alone (a prefix counts
among them, packed rows cannot restart), masks padding with minus infinity, silently leaves out keys and values that are
no ``Cache``, and cannot recompute layers.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F

from paddlesft.models.decoders.causal_masks import additive
from paddlesft.models.decoders.learned_positions import MASKED, LearnedPositionsDecoder
from paddlesft.models.hooked_call import call_with_hooks


class OPTDecoder(LearnedPositionsDecoder):
    """Runs OPT models, those too whose embeddings have another width than their layers.

    Recompute keeps the input of whole layers at every ``recompute_granularity``.
    """

    def start(
        self,
        input_ids: paddle.Tensor,
        attention_mask: paddle.Tensor,
        visible: paddle.Tensor,
        position_ids: paddle.Tensor,
    ) -> tuple[paddle.Tensor, tuple[paddle.Tensor, ...]]:
        embeddings = self.body.embeddings
        hidden = embeddings.word_embeddings(input_ids)
        if embeddings.project_in is not None:
            hidden = embeddings.project_in(hidden)
        table = embeddings.position_embeddings
        rows = self.checked_positions(position_ids) + table.offset
        hidden = hidden + call_with_hooks(table, lambda rows: F.embedding(rows, table.weight), rows)
        return embeddings.dropout(hidden), (additive(visible, MASKED).astype(hidden.dtype),)

    def layer(
        self,
        layer: paddle.nn.Layer,
        use_cache: bool,
        hidden: paddle.Tensor,
        keys: Any,
        values: Any,
        mask: paddle.Tensor,
    ) -> tuple[paddle.Tensor, Any]:
        past = None if keys is None else layer.self_attn.Cache(keys, values)
        output = layer(hidden, None, tgt_mask=mask, use_cache=use_cache, cache=past)
        return (output[0], tuple(output[-1])) if use_cache else (output, None)

    def finish(self, hidden: paddle.Tensor) -> paddle.Tensor:
        decoder = self.body.decoder
        if decoder.final_layer_norm is not None:
            hidden = decoder.final_layer_norm(hidden)
        return hidden if decoder.project_out is None else decoder.project_out(hidden)
