"""Special tokens spelled inside messages stay ordinary text: whoever writes a message cannot end a turn or begin one.

Tokenizers read "<|im_end|>" as the control token wherever it stands in a rendered conversation. So before a template
sees the messages, every special token's text in them is parted behind its first character, and the encoder encodes the
parts one by one: the model sees the same letters, but no control token. A template's own tokens are not touched, nor
are added tokens that are not special (``<think>``), which replies are meant to hold.
"""

from __future__ import annotations

import json
import re
from typing import Any

JOINT = "\ufdd0\ufdd1"  # two noncharacters, which no text has
_ESCAPED = json.dumps(JOINT)[1:-1]  # what JSON in ASCII and Python's repr make of them


def parted(value: Any, special: re.Pattern[str]) -> Any:
    """Return a value with a ``JOINT`` inside every special token that its texts spell.

    Args:
        value: a text, or lists and dicts that hold texts.
        special: finds the special tokens' texts.
    """
    if isinstance(value, dict):
        return {parted(key, special): parted(entry, special) for key, entry in value.items()}
    if isinstance(value, list):
        return [parted(entry, special) for entry in value]
    if not isinstance(value, str):
        return value
    parts, begin = [], 0
    while match := special.search(value, begin):
        parts.append(value[begin : match.start() + 1])
        begin = match.start() + 1
    return JOINT.join([*parts, value[begin:]])


def restored(text: str) -> str:
    """Return a rendered text in which templates escaped joints (as JSON, for instance) with the joints themselves."""
    return text.replace(_ESCAPED, JOINT)


def parts_of(text: str) -> list[str]:
    """Return the parts of a text that are to be encoded one by one."""
    return text.split(JOINT)


def without_joints(text: str) -> str:
    """Return the text as people read it."""
    return text.replace(JOINT, "")
