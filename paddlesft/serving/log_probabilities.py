"""Tokens and their probabilities, in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddlesft.data.encoding import AS_WRITTEN
from paddlesft.inference.engine_requests import TokenInfo
from paddlesft.inference.streaming import REPLACEMENT


def without_stop(
    tokens: list[TokenInfo], stop_token_ids: Sequence[int], more: Sequence[int] | None = None
) -> list[TokenInfo]:
    """Return the tokens less the stop token that ended them."""
    if tokens and (tokens[-1].token_id in stop_token_ids or tokens[-1].token_id in (more or ())):
        return tokens[:-1]
    return tokens


def token_text(token: int, tokenizer: Any) -> str:
    """Return a token's text; U+FFFD for a part of a character."""
    return tokenizer.decode([token], skip_special_tokens=False, **AS_WRITTEN)


def token_entry(one: TokenInfo, tokenizer: Any) -> dict[str, Any]:
    """Return a token as chat completions show it; ``bytes`` is null for a part of a character."""
    found = [_entry(token, value, tokenizer) for token, value in one.top]
    return {**_entry(one.token_id, one.logprob, tokenizer), "top_logprobs": found}


def _entry(token: int, logprob: float | None, tokenizer: Any) -> dict[str, Any]:
    text = token_text(token, tokenizer)
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


def token_lists(tokens: Sequence[TokenInfo], tokenizer: Any, offset: int = 0) -> dict[str, Any]:
    """Return tokens as completions show them.

    Args:
        tokens: of a reply.
        tokenizer: of the model.
        offset: characters of the reply before the first of them.
    """
    texts = [token_text(one.token_id, tokenizer) for one in tokens]
    places = [offset + sum(map(len, texts[:number])) for number in range(len(texts))]
    top = [{token_text(token, tokenizer): value for token, value in one.top} for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": top,
        "text_offset": places,
    }
