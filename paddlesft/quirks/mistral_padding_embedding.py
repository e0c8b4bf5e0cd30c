"""PaddleNLP's Mistral embeds the padding token as zeros, wherever it stands.

The layer is made with ``padding_idx``, for which Paddle's lookup gives zeros instead of the stored row. In models that
pad with a token of their text (the end-of-sequence token, usually) that changes every conversation. torch only leaves
the row out of training. Seen with paddlenlp 3.0.0b4 and paddlepaddle 3.3.1.
"""

from __future__ import annotations

from typing import Any


def embed_padding(model: Any) -> None:
    """Let the embedding give every token its stored row."""
    model.mistral.embed_tokens.padding_idx = None
