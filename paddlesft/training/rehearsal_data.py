"""Rows, and a tokenizer, for a rehearsal on a machine that lacks those of the run: random tokens.

The tokenizer has one word for each id, so that a text of random words is a row of random ids from the whole vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from paddlesft.directories import write_json

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FEWEST_WORDS, MOST_WORDS = 4, 24  # of a question and of a reply
PLAIN_WORDS = ["one", "two", "three", "four", "five", "red", "green", "blue", "cold", "warm", "small", "large"]


def words_of(vocabulary: int) -> list[str]:
    """Return the words of the stand-in tokenizer: one for each id behind the special ones."""
    return [f"w{index}" for index in range(len(SPECIAL), vocabulary)]


def write_standin_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write a tokenizer whose tokens are words that white space separates.

    Args:
        directory: of the model that it is for.
        vocabulary: how many ids it has.
    """
    tokens = [*SPECIAL.values(), *words_of(vocabulary)]
    added = [
        {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, text in enumerate(SPECIAL.values())
    ]  # fmt: skip
    write_json(directory / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {text: i for i, text in enumerate(tokens)}, "unk_token": "<unk>"},
    })  # fmt: skip
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL})


def write_rows(path: Path, count: int, words: list[str] | None, seed: int) -> None:
    """Write random questions and replies of different lengths.

    Args:
        path: the file to create; its directory exists.
        count: of rows.
        words: of the stand-in tokenizer; None: plain words, for any tokenizer.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    words = words or PLAIN_WORDS

    def text() -> str:
        drawn = generator.integers(0, len(words), generator.integers(FEWEST_WORDS, MOST_WORDS + 1))
        return " ".join(words[i] for i in drawn)

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"src": text(), "tgt": text()}) + "\n")
