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
from paddle.distributed.fleet.meta_parallel import ParallelCrossEntropy

from paddlesft.models.decoders import CausalDecoder, decoder_of
from paddlesft.quirks.finite_loss_of_nan import with_nan_kept

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
    hidden, _ = decoder_of(model).run(
        batch["input_ids"], batch.get("attention_mask"), batch.get("segment_ids"), batch.get("position_ids")
    )
    return hidden


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
    labels = np.asarray(batch["labels"])
    if not (labels != IGNORED).any():  # all layers run, as on other ranks, which may wait for this one in each of them
        labels = labels.copy()
        labels.flat[0] = 0
        return SupervisedLoss(supervised_loss(model, {**batch, "labels": labels}).loss_sum * 0.0, 0)
    rows, targets = trained_rows(model, batch)
    return SupervisedLoss(summed_loss(decoder_of(model), rows, targets), targets.shape[0])


def summed_loss(decoder: CausalDecoder, rows: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
    """Sum the cross entropy of tokens.

    Args:
        decoder: whose head is used.
        rows: hidden states [n, hidden] of the tokens.
        targets: int64 [n], what follows each.

    Returns:
        Scalar float32, through which gradients flow.
    """
    if hasattr(decoder.head, "token_losses"):  # a fast head, see models/fast: no logits are kept at all
        return decoder.head.token_losses(rows, targets).sum()
    if decoder.vocabulary_is_split:
        logits = decoder.own_logits(rows.unsqueeze(0)).squeeze(0)
        with paddle.amp.auto_cast(False):
            losses = ParallelCrossEntropy()(logits.astype("float32"), targets)
        return losses.sum()
    logits = decoder.logits(rows.unsqueeze(0)).squeeze(0)
    with paddle.amp.auto_cast(False):
        logits = logits.astype("float32")
        return with_nan_kept(F.cross_entropy(logits, targets, reduction="sum"), logits)


def trained_token_losses(model: paddle.nn.Layer, batch: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Score the trained tokens of a batch without keeping a graph, holding few logits at a time.

    Returns:
        float32 [n]: the loss of each trained token in reading order, and how many of them are the most likely token.
    """
    if not (np.asarray(batch["labels"]) != IGNORED).any():
        return np.zeros([0], dtype=np.float32), 0
    with paddle.no_grad():
        return token_scores(decoder_of(model), *trained_rows(model, batch))


def token_scores(decoder: CausalDecoder, rows: paddle.Tensor, targets: paddle.Tensor) -> tuple[np.ndarray, int]:
    """Score tokens as ``trained_token_losses`` does; arguments as for ``summed_loss``."""
    losses, correct = [np.zeros([0], dtype=np.float32)], 0
    for begin in range(0, targets.shape[0], ROWS_AT_A_TIME):
        part = slice(begin, begin + ROWS_AT_A_TIME)
        logits = decoder.logits(rows[part].unsqueeze(0)).squeeze(0)
        found = F.cross_entropy(logits.astype("float32"), targets[part], reduction="none")
        losses.append(found.reshape([-1]).numpy())
        correct += int((logits.argmax(axis=-1) == targets[part]).sum())
    return np.concatenate(losses), correct
