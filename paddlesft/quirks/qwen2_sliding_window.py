"""PaddleNLP's Qwen2 reads ``use_sliding_window`` and then attends to the whole context.

Seen with paddlenlp 3.0.0b4: ``Qwen2Config`` keeps ``use_sliding_window`` and ``sliding_window``, and nothing in
``qwen2/modeling.py`` asks for them. Rows longer than the window would get other logits than the model was made for.
"""

from __future__ import annotations

from typing import Any

from paddlesft.errors import ModelDirectoryError


def refuse_sliding_window(config: Any) -> None:
    """Refuse a config whose window is shorter than the model's context.

    Raises:
        ModelDirectoryError: ``use_sliding_window`` is true and ``sliding_window`` would cut something off.
    """
    if config.use_sliding_window and config.sliding_window < config.max_position_embeddings:
        raise ModelDirectoryError(
            f"config.json: use_sliding_window is true with sliding_window {config.sliding_window}, but PaddleNLP's "
            f"Qwen2 attends to the whole context of {config.max_position_embeddings} tokens, which gives other numbers "
            f"beyond the window. To use the model up to its window, set use_sliding_window to false and "
            f"max_position_embeddings to {config.sliding_window} in a copy of config.json."
        )
