"""SentencePiece BPE tokenizers of GGUF files (``tokenizer.ggml.model`` = "llama": Llama 1 and 2, Mistral,
Gemma).

SentencePiece has no list of merges: of all neighbours whose joined text is a token, it joins those with the highest
score first. The ``tokenizers`` library wants merges in order; they follow from the scores.
"""

from __future__ import annotations

from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf_file import AGAIN, INSTEAD, GGUFFile

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # token types of the format
SPACE = "▁"


def restore_user_defined(tokens: list[str], types: list[int]) -> tuple[list[str], list[int]]:
    """Find the tokens that the model's makers defined (Gemma's line breaks, runs of spaces, HTML tags).

    llama.cpp's converter stores them as normal tokens. SentencePiece numbers the learned tokens behind the 256 bytes,
    so that what stands before the bytes was defined.

    Returns:
        The tokens as they stand in the text (spaces for ``▁``), and the types, with these tokens' corrected.
    """
    learned = types.index(BYTE) if BYTE in types else 0
    types = [USER_DEFINED if of == NORMAL and i < learned else of for i, of in enumerate(types)]
    tokens = [token.replace(SPACE, " ") if of == USER_DEFINED else token for token, of in zip(tokens, types)]
    return tokens, types


def sentencepiece_bpe(gguf: GGUFFile, tokens: list[str], types: list[int]) -> Any:
    """Build a file's tokenizer, without its added tokens.

    Raises:
        ModelDirectoryError: the scores are missing or say nothing, or text is rewritten before it is cut.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    fields = gguf.fields
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if fields.get(f"tokenizer.ggml.{key}"):
            raise ModelDirectoryError(
                f"{gguf.path}: the tokenizer rewrites text (tokenizer.ggml.{key}), which import does not cover. "
                f"{INSTEAD}"
            )
    scores = fields.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise ModelDirectoryError(f"{gguf.path}: the tokenizer's scores are missing or incomplete. {AGAIN}")
    score_of = {token: score for token, score, of in zip(tokens, scores, types) if of == NORMAL}
    if len({score for token, score in score_of.items() if len(token) > 1}) < 2:
        raise ModelDirectoryError(
            f"{gguf.path}: all scores of the tokenizer are equal, so that they give no order of merges. {INSTEAD}"
        )
    unknown = next((token for token, of in zip(tokens, types) if of == UNKNOWN), None)
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges_of(score_of),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def merges_of(score_of: dict[str, float]) -> list[tuple[str, str]]:
    """Return every way to join two tokens to a third, the highest score first.

    Args:
        score_of: token -> score, of the tokens that may be joined.
    """
    merges = [
        (-score, token, cut)
        for token, score in score_of.items()
        for cut in range(1, len(token))
        if token[:cut] in score_of and token[cut:] in score_of
    ]
    return [(token[:cut], token[cut:]) for _, token, cut in sorted(merges)]
