"""PaddleNLP's Llama has a table of rotations for ``max_position_embeddings`` positions, and reads beyond its end.

On a longer row one kernel stops with an IndexError, another takes whatever stands in memory there. Qwen2, Mistral and
Gemma compute what is missing, and so does transformers for Llama. Seen with paddlenlp 3.0.0b4
(``LlamaRotaryEmbedding.forward``).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

STEP = 1024  # the table grows by whole multiples of this


def extend_when_needed(model: Any) -> None:
    """Let each table of a Llama model grow to the longest row it meets."""
    from paddlenlp.transformers.llama.modeling import LlamaDynamicNTKScalingRotaryEmbedding, LlamaRotaryEmbedding

    for layer in model.sublayers():
        if isinstance(layer, LlamaRotaryEmbedding) and not isinstance(layer, LlamaDynamicNTKScalingRotaryEmbedding):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Any, seq_len: int) -> Any:
    from paddlenlp.transformers.llama.modeling import Llama3RotaryEmbedding, LlamaRotaryEmbedding

    if seq_len > layer.max_seq_len_cached:
        # LLaMA 3's own function scales the frequencies, and would scale the scaled ones
        kind = LlamaRotaryEmbedding if isinstance(layer, Llama3RotaryEmbedding) else type(layer)
        kind._set_cos_sin_cache(layer, -(-seq_len // STEP) * STEP)
    return type(layer).forward(layer, x, seq_len)
