"""Keys that users bring from PaddleNLP and PaddleFormers."""

from __future__ import annotations

from paddlesft.config.translation import OldKey

TRAINING_OLD_KEYS: dict[str, OldKey] = {}
