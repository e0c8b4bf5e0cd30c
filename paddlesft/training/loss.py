"""The supervised loss. Logits are computed at trained positions only.

A prompt's positions train nothing, yet their logits would be most of the memory of a step (sequence × vocabulary
floats): the decoder's hidden states are gathered where ``labels != -100`` before the head runs. Labels arrive shifted
from the data room, so nothing is shifted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.models.families import family_of
from paddlesft.quirks.finite_loss_of_nan import with_nan_kept
from paddlesft.training.packed_attention import block_diagonal_mask

IGNORED = -100
ROWS_AT_A_TIME = 256  # rows of logits that evaluation holds


class SupervisedLoss(NamedTuple):
    """Sums over a batch, so that any number of batches can be normalised together.

    Attributes:
        loss_sum: scalar float32; the cross entropy summed over trained tokens (nats).
        trained_tokens: how many tokens that is.
    """

    loss_sum: paddle.Tensor
    trained_tokens: int


def causal_lm(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return the causal language model inside LoRA, prefix and data-parallel wrappers (the model itself when bare)."""
    while isinstance(model, LoRAModel | PrefixModelForCausalLM | paddle.DataParallel):
        model = model._layers if isinstance(model, paddle.DataParallel) else model.model
    return model


def as_tensors(batch: Mapping[str, Any]) -> dict[str, paddle.Tensor]:
    """Turn the arrays of a collated batch into tensors on the current device."""
    return {k: v if isinstance(v, paddle.Tensor) else paddle.to_tensor(v) for k, v in batch.items()}


def hidden_states(model: paddle.nn.Layer, batch: Mapping[str, Any]) -> paddle.Tensor:
    """Run the decoder of a model, with its adapter, over a collated batch.

    Args:
        model: a causal language model of the family table, bare or inside ``LoRAModel`` / ``PrefixModelForCausalLM``.
        batch: ``input_ids`` int64 [b, s] and ``attention_mask`` [b, s]; packed: ``segment_ids`` and ``position_ids``.

    Returns:
        float [b, s, hidden], after the final norm.
    """
    batch = as_tensors(batch)
    lm = causal_lm(model)
    decoder = getattr(lm, family_of(lm.config).base_prefix)
    prefix = model if isinstance(model, PrefixModelForCausalLM) else None
    width = prefix.prefix_config.num_prefix_tokens if prefix else 0
    inputs: dict[str, Any] = {"use_cache": False}
    if "segment_ids" in batch:
        inputs["attention_mask"] = block_diagonal_mask(batch["segment_ids"], width)
    elif "attention_mask" in batch:
        mask = batch["attention_mask"]
        if width:
            mask = paddle.concat([paddle.ones([mask.shape[0], width], dtype=mask.dtype), mask], axis=-1)
        inputs["attention_mask"] = mask
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
    if prefix:
        inputs["past_key_values"] = prefix._get_past_key_values(batch["input_ids"].shape[0])
    output = decoder(batch["input_ids"], **inputs)
    return output[0] if isinstance(output, tuple | list) else getattr(output, "last_hidden_state", output)


def trained_rows(model: paddle.nn.Layer, batch: Mapping[str, Any]) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Gather what the head needs at the trained positions of a batch.

    Args:
        model: as for ``hidden_states``.
        batch: as for ``hidden_states``, with ``labels`` int64 [b, s]: the token that follows each position, or -100.

    Returns:
        Hidden states float [n, hidden] and targets int64 [n], in reading order.
    """
    flat = np.asarray(batch["labels"]).reshape(-1)
    positions = np.flatnonzero(flat != IGNORED)
    hidden = hidden_states(model, batch)
    rows = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), paddle.to_tensor(positions))
    return rows, paddle.to_tensor(flat[positions])


def supervised_loss(model: paddle.nn.Layer, batch: Mapping[str, Any]) -> SupervisedLoss:
    """Compute the loss of a batch as a sum over its trained tokens.

    Args:
        model: as for ``hidden_states``.
        batch: as for ``trained_rows``. A batch without trained tokens is allowed: its loss is 0.

    Returns:
        The sum, through which gradients flow, and the token count.
    """
    if not (np.asarray(batch["labels"]) != IGNORED).any():
        return SupervisedLoss(hidden_states(model, batch).sum().astype("float32") * 0.0, 0)
    rows, targets = trained_rows(model, batch)
    head = causal_lm(model).lm_head
    if hasattr(head, "token_losses"):  # a fast head, see models/fast: no logits are kept at all
        return SupervisedLoss(head.token_losses(rows, targets).sum(), targets.shape[0])
    logits = head(rows.unsqueeze(0)).squeeze(0)
    with paddle.amp.auto_cast(False):
        logits = logits.astype("float32")
        loss = with_nan_kept(F.cross_entropy(logits, targets, reduction="sum"), logits)
    return SupervisedLoss(loss, targets.shape[0])


def trained_token_losses(model: paddle.nn.Layer, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Score the trained tokens of a batch without keeping a graph, holding few logits at a time.

    Returns:
        float32 [n]: the loss of each trained token in reading order, and how many of them are the most likely token.
    """
    if not (np.asarray(batch["labels"]) != IGNORED).any():
        return np.zeros([0], dtype=np.float32), 0
    losses, correct = [], 0
    with paddle.no_grad():
        rows, targets = trained_rows(model, batch)
        head = causal_lm(model).lm_head
        for begin in range(0, targets.shape[0], ROWS_AT_A_TIME):
            part = slice(begin, begin + ROWS_AT_A_TIME)
            logits = head(rows[part].unsqueeze(0)).squeeze(0)
            found = F.cross_entropy(logits.astype("float32"), targets[part], reduction="none")
            losses.append(found.reshape([-1]).numpy())
            correct += int((logits.argmax(axis=-1) == targets[part]).sum())
    return np.concatenate(losses), correct
