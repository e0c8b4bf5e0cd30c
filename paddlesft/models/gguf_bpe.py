"""Byte-level BPE tokenizers of GGUF files (``tokenizer.ggml.model`` = "gpt2").

How text is cut before BPE is not stored as a rule but as a name (``tokenizer.ggml.pre``). The rules below are those of
the published tokenizers of that name; ``default`` is llama.cpp's own rule for tokenizers that it did not recognise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf_file import AGAIN, INSTEAD, GGUFFile

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before BPE.

    Attributes:
        splits: regular expressions, each cutting the pieces of the one before.
        digits: every digit is a piece of its own, before ``splits``.
        words: GPT-2's expression, built into ``tokenizers``, comes last.
        nfc: text is brought into Unicode's composed form first.
        whole_words: a piece that is in the vocabulary is taken whole, whatever the merges say.
    """

    splits: tuple[str, ...] = ()
    digits: bool = False
    words: bool = False
    nfc: bool = False
    whole_words: bool = False


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(words=True),
    "smollm": PreTokenizer(digits=True, words=True),
    "llama-bpe": PreTokenizer(splits=(LLAMA3_SPLIT,), whole_words=True),
    "qwen2": PreTokenizer(splits=(LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"),), nfc=True),
    "bloom": PreTokenizer(splits=(r" ?[^(\s|[.,!?…。，、।۔،])]+",)),
    "default": PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def pre_tokenizer(rule: PreTokenizer) -> Any:
    """Build the ``tokenizers`` object of a rule."""
    from tokenizers import Regex, pre_tokenizers

    parts = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    parts += [pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False) for split in rule.splits]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.words))
    return pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]


def byte_level_bpe(gguf: GGUFFile, tokens: list[str], types: list[int]) -> Any:
    """Build a file's tokenizer, without its added tokens.

    Raises:
        ModelDirectoryError: its merges are missing, or its name for the cutting of text is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    pre = gguf.fields.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in PRE_TOKENIZERS:
        raise ModelDirectoryError(
            f"{gguf.path}: tokenizer.ggml.pre is {pre!r}; known: {', '.join(PRE_TOKENIZERS)}. {INSTEAD}"
        )
    merges = gguf.fields.get("tokenizer.ggml.merges")
    if not merges:
        raise ModelDirectoryError(f"{gguf.path}: the tokenizer's merges are missing. {AGAIN}")
    rule = PRE_TOKENIZERS[pre]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        ignore_merges=rule.whole_words,
    )
    tokenizer = Tokenizer(model)
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
