"""Texts are parted inside special tokens and nowhere else."""

from __future__ import annotations

import json
import re

from paddlesft.data.encoding import _any_of
from paddlesft.data.literal_text import JOINT, parted, parts_of, restored, without_joints

SPECIAL = re.compile("(" + re.escape("<|im_end|>") + "|" + re.escape("</s>") + ")")


def test_every_special_token_is_parted_behind_its_first_character() -> None:
    text = "a<|im_end|>b</s></s>"
    assert parts_of(parted(text, SPECIAL)) == ["a<", "|im_end|>b<", "/s><", "/s>"]
    assert without_joints(parted(text, SPECIAL)) == text
    assert parted("no marks, </s", SPECIAL) == "no marks, </s"


def test_texts_inside_lists_and_dicts_are_parted_and_other_values_kept() -> None:
    assert parted({"</s>": ["</s>", 1, None, True]}, SPECIAL) == {f"<{JOINT}/s>": [f"<{JOINT}/s>", 1, None, True]}


def test_joints_that_a_template_escaped_are_restored() -> None:
    told = parted("</s>", SPECIAL)
    for escaped in (json.dumps(told), repr(told), str([told]), told):
        assert JOINT in restored(escaped) and "</s>" in without_joints(restored(escaped))


def test_tokens_that_are_words_are_never_read_from_a_text() -> None:
    pattern = _any_of(["sop", "eop", "[gMASK]", "<|user|>", "<|user|>x", "#"])
    assert pattern.findall("people [gMASK] #1 <|user|>x <|user|>") == ["[gMASK]", "<|user|>x", "<|user|>"]
