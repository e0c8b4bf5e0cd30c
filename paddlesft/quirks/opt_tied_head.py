"""PaddleNLP's OPT has an output head of its own although OPT shares it with the token embedding.

A checkpoint without a second copy of the embedding then computes with random numbers, training pulls the two apart,
and models whose embeddings have another width than their layers (OPT-350M) fail, because the head has the layers'.
Seen with paddlenlp 3.0.0b4 (``OPTForCausalLM.__init__`` gives ``OPTLMHead`` no embedding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD = "lm_head.decoder_weight"


def tie_head(model: Any, is_stored: Callable[[str], bool]) -> None:
    """Make the head of a model the embedding, unless its directory holds another one.

    Args:
        model: an OPT model with the weights of a directory.
        is_stored: says whether the directory holds a tensor.
    """
    embedding, head = model.opt.embeddings.word_embeddings.weight, model.lm_head.decoder_weight
    if not model.config.tie_word_embeddings:
        return
    if is_stored(HEAD) and _differs(head, embedding):
        # trained apart by PaddleNLP, whose config then still says that they are tied
        model.config.tie_word_embeddings = False
    else:
        model.lm_head.decoder_weight = embedding


def _differs(head: Any, embedding: Any) -> bool:
    """Tell whether a whole head is another matrix than the embedding, of which each rank may hold some rows only."""
    if head.shape[-1] != embedding.shape[-1]:
        return False  # no head of this model: it has the width of the layers
    if head.shape[0] == embedding.shape[0]:
        return not bool((head == embedding).all())
    import paddle
    from paddle.distributed import ReduceOp, all_reduce, fleet

    groups = fleet.get_hybrid_communicate_group()
    rows = embedding.shape[0]
    first = rows * groups.get_model_parallel_rank()
    found = paddle.logical_not((head[first : first + rows] == embedding).all()).astype("int32")
    all_reduce(found, op=ReduceOp.MAX, group=groups.get_model_parallel_group())  # one answer for all ranks
    return bool(found)
