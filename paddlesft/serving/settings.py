"""What the service allows, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServingSettings:
    """Limits and keys of the HTTP service.

    Attributes:
        src_length: most tokens of a prompt.
        max_output_tokens: most tokens of a reply.
        default_max_tokens: tokens of a reply for requests that name none; None: as many as ``max_output_tokens``.
        defaults: sampling of requests that leave it open, by the names of ``SamplingOptions``; what is not here has the
            default of the interface that is called.
        max_body_bytes: most bytes of a request's body.
        max_header_bytes: most bytes of a request's first line and headers.
        max_choices: most replies of one request (``n``).
        request_timeout: seconds after which a reply is given up with an error; None: never.
        api_keys: keys that are accepted; empty: none is asked for.
        log_prompts: whether texts of prompts and replies are logged.
        receive_seconds: within which a request must have arrived, and an idle connection must send the next.
        max_connections: most open connections.
    """

    src_length: int = 2048
    max_output_tokens: int = 2048
    default_max_tokens: int | None = None
    defaults: Mapping[str, float | int | str] = field(default_factory=dict)
    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 32 << 10
    max_choices: int = 8
    request_timeout: float | None = None
    api_keys: tuple[str, ...] = ()
    log_prompts: bool = False
    receive_seconds: float = 60.0
    max_connections: int = 512
