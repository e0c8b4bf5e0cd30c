"""Text pieces to token ids, so that pieces encoded one by one decode to the text they make together.

A byte-level tokenizer encodes any piece as it stands. A SentencePiece tokenizer puts a space before every text it is
given; behind the first piece that would be a space nobody wrote. Such a tokenizer encodes the piece behind an anchor
whose own tokens are then taken away.

PaddleNLP's slow tokenizers read special tokens that stand in a text ("</s>") as ordinary characters unless they were
added by hand, never find added tokens that are not special (Qwen3's "<think>"), or swallow the line break beside one. A
stop token spelled in letters would never stop anything, so with such a tokenizer the text is cut at these tokens here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from paddlesft.data.literal_text import parts_of

ANCHORS = ("\n", "]", ">", ".", "0", "|")
PLAIN_WORD = "word"
# for tokenizer.decode: slow tokenizers would put spaces around added tokens and take them from before punctuation
AS_WRITTEN = {"clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False}
PROBES = ((":", "Hello there"), (":", " Hello there"), ("]", "\n好的"))


class TextEncoder:
    """Encodes prompt and reply pieces with one tokenizer.

    Args:
        tokenizer: a PaddleNLP tokenizer, slow or fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # long rows are cut, dropped or refused by truncation.py, which says so; the tokenizer need not warn of them
        getattr(tokenizer, "deprecation_warnings", {})["sequence-length-is-longer-than-the-specified-maximum"] = True
        self.special_ids = special_token_ids(tokenizer)
        eos = tokenizer.eos_token_id
        # QWenTokenizer has no eos_token, but an end-of-document id for the same purpose
        self.eos_token_id: int | None = eos if eos is not None else getattr(tokenizer, "eod_id", None)
        self.bos_token_id: int | None = tokenizer.bos_token_id
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = pad if pad is not None else (self.eos_token_id if self.eos_token_id is not None else 0)
        self._unwritten: dict[int, str] = {}
        self._anchored = not all(self._joins(a, b) for a, b in PROBES)
        self.special_text = _any_of(self.special_ids)
        self.added_ids = {**added_token_ids(tokenizer), **self.special_ids}
        # ChatGLM's tokenizers decode their own tokens to nothing
        self._unwritten = {index: text for text, index in self.added_ids.items() if text not in self.decode([index])}
        misread = any(self._misread(text, index) for text, index in self.added_ids.items())
        self._cut = _any_of(self.added_ids) if misread else None
        self._opening, self._closing = self._surroundings()

    @property
    def eos_text(self) -> str:
        """How the end-of-sequence token is written, for messages."""
        known = (text for text, index in self.special_ids.items() if index == self.eos_token_id)
        return next(known, f"token {self.eos_token_id}")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that nothing stands before; no special tokens are added."""
        return self._encode_joined(text, behind=False)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Return the ids of a text with the tokenizer's own around it, less an end-of-sequence behind it."""
        return [*self._opening, *self.encode(text), *self._closing]

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind any text (a few put the beginning of the reply behind it)."""
        around = list(self.tokenizer(PLAIN_WORD, add_special_tokens=True)["input_ids"])
        word = self._plain(PLAIN_WORD)
        starts = [i for i in range(len(around)) if around[i : i + len(word)] == word]
        if not starts:
            return [], []
        closing = around[starts[0] + len(word) :]
        while closing and closing[-1] == self.eos_token_id:
            closing.pop()
        return around[: starts[0]], closing

    def opening_length(self, prompt: Sequence[int]) -> int:
        """Return how many tokens at a prompt's beginning stay there when what follows is cut.

        They are what the tokenizer puts before every text, or a begin-of-sequence token, unless they mark turns too
        (ChatML uses begin-of-sequence for every turn).
        """
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        for opening in (self._opening, bos):
            length = len(opening)
            if length and list(prompt[:length]) == opening and opening[0] not in prompt[length:]:
                return length
        return 0

    def encode_behind(self, text: str) -> list[int]:
        """Return the ids of a piece that other text stands before."""
        return self._encode_joined(text, behind=True)

    def last_token(self) -> tuple[int, str]:
        """Return the highest id of the tokenizer, and how its token is written."""
        known = {**self.tokenizer.get_vocab(), **self.added_ids}  # not every class counts its special tokens in
        return max((index, str(text)) for text, index in known.items())

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens included."""
        return "".join(
            "".join(self._unwritten[i] for i in run) if special else self._decoded(list(run))
            for special, run in groupby(ids, self._unwritten.__contains__)
        )

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, **AS_WRITTEN)

    def _encode_joined(self, text: str, behind: bool) -> list[int]:
        parts = parts_of(text)
        return [i for n, part in enumerate(parts) for i in self._encode_parts(part, behind or n > 0)]

    def _encode_parts(self, text: str, behind: bool) -> list[int]:
        if self._cut is None:
            return self._behind(text) if behind else self._plain(text)
        ids: list[int] = []
        for part in self._cut.split(text):
            if part in self.added_ids:
                ids.append(self.added_ids[part])
                behind = self.added_ids[part] != self.bos_token_id  # a text begins behind begin-of-sequence
            else:
                ids += self._behind(part) if behind else self._plain(part)
                behind = behind or bool(part)
        return ids

    def _misread(self, special: str, index: int) -> bool:
        """Whether the tokenizer spells an added token in letters, or swallows white space beside it."""
        if self._plain(special) != [index]:
            return True
        before, behind = "a\n", "\n b"
        parts = [*self._plain(before), index, *self._plain(behind)]
        return not self._anchored and self._plain(before + special + behind) != parts

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _behind(self, text: str) -> list[int]:
        if not text or not self._anchored:
            return self._plain(text)
        for anchor in ANCHORS:
            alone, both = self._plain(anchor), self._plain(anchor + text)
            if both[: len(alone)] == alone and len(both) > len(alone):
                return both[len(alone) :]
        return self._plain(text)

    def _joins(self, first: str, second: str) -> bool:
        return self.decode(self._plain(first) + self._plain(second)) == first + second


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    # ChatGLM's "sop" and "eop" stand in "people" too; such tokens come from the tokenizer, never from a text
    longest_first = sorted((text for text in texts if len(text) > 1 and not text.isalnum()), key=len, reverse=True)
    # "(?!)" matches nothing: a tokenizer may have no such tokens at all
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")


def added_token_ids(tokenizer: Any) -> dict[str, int]:
    """Return all tokens added to a tokenizer's vocabulary: control tokens, and plain ones such as ``<think>``."""
    decoder = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {str(token): int(index) for index, token in decoder.items() if str(token)}


def special_token_ids(tokenizer: Any) -> dict[str, int]:
    """Return the texts of a tokenizer's special tokens and their ids, added ones included."""
    texts = [str(token) for token in tokenizer.all_special_tokens]
    named = {"eos_token": tokenizer.eos_token_id, "pad_token": tokenizer.pad_token_id}  # unset ones log an error
    texts += [str(getattr(tokenizer, name)) for name, index in named.items() if index is not None]
    decoder = getattr(tokenizer, "added_tokens_decoder", None) or {}
    texts += [str(token) for token in decoder.values() if getattr(token, "special", False)]
    for holder in (tokenizer, getattr(tokenizer, "tokenizer", None)):  # QWen and ChatGLM keep tables of their own
        table = getattr(holder, "special_tokens", None)
        texts += list(table) if isinstance(table, dict) else []
    unknown = getattr(tokenizer, "unk_token_id", None)
    found: dict[str, int] = {}
    for text in dict.fromkeys(texts):
        index = tokenizer.convert_tokens_to_ids(text)
        if isinstance(index, int) and (index != unknown or text == str(tokenizer.unk_token)):
            found[text] = index
    return found
