"""Pipeline stages: what their first layer is given, and the head of the last one.

A stage's layers hand tensors on by themselves (PaddleNLP's pipeline classes); nothing here runs them. The classes take
the mask in the form that no device and no dtype lets them take for something else: bool [b, 1, s, s], causal already,
with positions in int64. Llama's and Qwen2's tell a tensor's meaning by its dtype, GPT's cuts a causal table of its own
out of a matrix that ends with ``max_position_embeddings``, which packed rows may exceed.

Positions restart in packed rows. Gemma's and Qwen's classes do not hand them on to their layers; the angles between
tokens of one conversation are the same nevertheless, and no others meet.

b rows, s tokens, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
from paddle.distributed.fleet.meta_parallel import PipelineLayer

from paddlesft.errors import UserError
from paddlesft.models.decoders.causal import CausalDecoder
from paddlesft.models.decoders.causal_masks import causal_mask
from paddlesft.models.decoders.masks import block_diagonal_mask
from paddlesft.models.families import family_of
from paddlesft.models.pipeline import chunks_of, decoder_layers, is_last_stage


def stage_inputs(stage: PipelineLayer, batch: Mapping[str, Any]) -> dict[str, paddle.Tensor]:
    """Return what the first layer of a pipeline is given for a collated batch.

    Args:
        stage: any stage of the pipeline.
        batch: ``input_ids`` int64 [b, s] and ``attention_mask`` [b, s]; packed: ``segment_ids`` and ``position_ids``.

    Returns:
        ``input_ids`` and ``position_ids`` int64 [b, s], ``attention_mask`` bool [b, 1, s, s].

    Raises:
        UserError: a row is longer than the model's table of positions.
    """
    ids = np.asarray(batch["input_ids"])
    if "segment_ids" in batch:
        mask = block_diagonal_mask(paddle.to_tensor(batch["segment_ids"]))
        positions = np.asarray(batch["position_ids"])
    else:
        seen = np.asarray(batch["attention_mask"])
        mask = causal_mask(paddle.to_tensor(seen), ids.shape[1])
        positions = np.maximum(np.cumsum(seen, axis=-1) - 1, 0)
    _check_positions(stage, int(positions.max()) + 1)
    return {
        "input_ids": paddle.to_tensor(ids),
        "attention_mask": mask,
        "position_ids": paddle.to_tensor(positions.astype("int64")),
    }


def _check_positions(stage: PipelineLayer, needed: int) -> None:
    family = family_of(stage.config)
    known = family.context_length(stage.config) if family.positions_end else None
    if known is not None and needed > known:
        raise UserError(
            f"A row has {needed} tokens, but this model knows {known} positions: there are no more. Set max_length to "
            f"{known} or less."
        )


def head_of(stage: PipelineLayer) -> CausalDecoder | None:
    """Take the head out of what the last stage runs, so that it need not turn every position into logits.

    Args:
        stage: changed: its last norm is the last that it runs. The head's weights stay where they are.

    Returns:
        What turns hidden states into logits (``logits``, ``own_logits``; nothing else of it can be called); None on
        other stages, which have no head.
    """
    decoder = family_of(stage.config).decoder_class()
    if not is_last_stage(stage):
        return decoder(_as_model(stage, None))
    line = chunks_of(stage)[-1]
    head = line[-1]
    line[-1] = _unchanged
    return decoder(_as_model(stage, head))


def _unchanged(hidden: paddle.Tensor) -> paddle.Tensor:
    return hidden


def _as_model(stage: PipelineLayer, head: paddle.nn.Layer | None) -> Any:
    """Return as much of a causal language model as a decoder looks at, apart from running it."""
    tied = head is not None and hasattr(head.weight, "is_firstly_shared")
    body = SimpleNamespace(
        output_layer=head,
        sublayers=stage.sublayers,
        decoder=SimpleNamespace(layers=list(decoder_layers(stage).values())),
        get_input_embeddings=lambda: SimpleNamespace(weight=head.weight if tied else None),
    )
    return SimpleNamespace(**{"config": stage.config, "lm_head": head, family_of(stage.config).base_prefix: body})
