"""The page's sampling controls as fields of a request."""

from __future__ import annotations

from typing import Any


def request_options(
    max_tokens: float | None,
    temperature: float,
    top_p: float,
    top_k: float,
    repetition_penalty: float,
    seed: float | None,
    stop: str,
) -> dict[str, Any]:
    """Return the fields of a request.

    ``top_k`` and ``repetition_penalty`` are not OpenAI's: they are left out while they change nothing, for servers that
    do not know them.

    Args:
        max_tokens: of the reply; None: as the server likes.
        temperature: 0 is greedy.
        top_p: 1 is all tokens.
        top_k: 0 is all tokens.
        repetition_penalty: 1 is none.
        seed: 0 or None: another one each time.
        stop: texts that end the reply, one a line.
    """
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    if max_tokens:
        options["max_tokens"] = int(max_tokens)
    if top_k:
        options["top_k"] = int(top_k)
    if repetition_penalty != 1:
        options["repetition_penalty"] = repetition_penalty
    if seed:
        options["seed"] = int(seed)
    stops = [text for text in (stop or "").split("\n") if text]
    if stops:
        options["stop"] = stops
    return options
