"""How many tokens a request used, as OpenAI's API counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddlesft.inference.engine_requests import Finished


def usage_of(ended: Sequence[Finished], prompts: int = 1) -> dict[str, Any]:
    """Return the numbers of tokens of a request.

    Args:
        ended: the ends of its replies; those of one prompt stand together, as many for each.
        prompts: of the request; each is counted once, however many replies it has.
    """
    each = max(len(ended) // max(prompts, 1), 1)
    told = sum(one.prompt_tokens for one in ended[::each])
    made = sum(one.generated_tokens for one in ended)
    cached = sum(one.cached_tokens for one in ended[::each])
    return {
        "prompt_tokens": told,
        "completion_tokens": made,
        "total_tokens": told + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
