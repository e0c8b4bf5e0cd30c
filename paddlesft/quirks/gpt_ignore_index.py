"""PaddleNLP's GPT counts label 0 as "not trained" and fails at -100, the label that says so everywhere else.

Seen with paddlenlp 3.0.0b4: ``GPTConfig`` has ``ignore_index: int = 0``. Its criterion then leaves out the token with
id 0 and raises ``IndexError: Expected lbl >= 0, but received lbl:-100``.
"""

from __future__ import annotations

from typing import Any

IGNORED = -100


def ignore_unlabelled(config: Any) -> None:
    """Let the criterion of a model that is built from this config leave out the label -100."""
    config.ignore_index = IGNORED
