"""What the service allows, and how it is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingSettings:
    """Limits and keys of the HTTP service.

    Attributes:
        src_length: most tokens of a prompt.
        max_output_tokens: most tokens of a reply.
        default_max_tokens: tokens of a reply for requests that name none; None: as many as ``max_output_tokens``.
        max_body_bytes: most bytes of a request's body.
        max_choices: most replies of one request (``n``).
        request_timeout: seconds after which a request ends with what it has; None: never.
        api_keys: keys that are accepted; empty: none is asked for.
        log_prompts: whether texts of prompts and replies are logged.
    """

    src_length: int = 2048
    max_output_tokens: int = 2048
    default_max_tokens: int | None = None
    max_body_bytes: int = 1 << 20
    max_choices: int = 8
    request_timeout: float | None = None
    api_keys: tuple[str, ...] = ()
    log_prompts: bool = False
