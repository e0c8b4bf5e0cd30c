"""PaddleNLP's pipeline class of GPT cuts masks out of a causal table with a row for each position that the model knows.

Seen with paddlenlp 3.0.0b4 (``GPTEmbeddingPipe``): packed rows, whose positions restart, may be wider than the table,
and stop with an error about shapes. The table holds the square of ``max_position_embeddings`` int64.
"""

from __future__ import annotations

from typing import Any


def leave_mask_as_it_is(model: Any) -> None:
    """Let the embeddings of a stage take masks of any width; they have to be causal already."""
    import paddle
    from paddlenlp.transformers.gpt.modeling_pp import GPTEmbeddingPipe

    for layer in model.sublayers():
        if isinstance(layer, GPTEmbeddingPipe):
            layer.bias = paddle.ones([1, 1, 1, 1], dtype="int64")
