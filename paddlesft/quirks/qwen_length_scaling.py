"""Two ways in which Qwen 1 stretches beyond its trained length depend on what else is computed.

Seen with paddlenlp 3.0.0b4, ``QWenAttention.forward``. Dynamic NTK takes the width of the batch, padding and packed
neighbours included, for the length of a row, is on in evaluation only, and leaves its factor behind in the model: after
one long prompt training and cached decoding rotate short rows wrongly. Scaling by log n counts padding and a prefix as
tokens. Up to ``seq_length`` tokens both are without effect, and the family table ends the context there, so both are
turned off.
"""

from __future__ import annotations

from typing import Any


def keep_trained_length(model: Any) -> None:
    """Turn dynamic NTK and the scaling by log n off in every layer; the config keeps what it says."""
    from paddlenlp.transformers.qwen.modeling import QWenAttention

    for layer in model.sublayers():  # of a whole model or of a pipeline's stage
        if isinstance(layer, QWenAttention):
            layer.use_dynamic_ntk = False
            layer.use_logn_attn = False
