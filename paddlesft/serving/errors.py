"""Errors of the HTTP service: one shape for all of them, which OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlesft.errors import PaddleSFTError

API_CHAT = "/api/chat"  # PaddleNLP's interface
TOO_LONG, FAILED = 1, 1000  # its codes
TOO_LONG_HERE = ("context_length_exceeded", "max_tokens_too_large")


class ApiError(PaddleSFTError):
    """What a request is answered with when it cannot be served.

    Args:
        status: HTTP status.
        message: what was found, what is allowed and what to do; holds no path of the server.
        type: OpenAI's class of the error, e.g. ``invalid_request_error``.
        param: the key of the request that is wrong, or None.
        code: for programs, e.g. ``model_not_found``; or None.
        headers: of the answer, e.g. ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})

    def body(self, path: str = "") -> dict[str, Any]:
        """Return the JSON object of the answer.

        Args:
            path: that was asked; ``/api/chat`` has upstream's fields, too.
        """
        error = {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        if path != API_CHAT:
            return error
        code = TOO_LONG if self.code in TOO_LONG_HERE else FAILED
        return {"error_code": code, "error_msg": self.message, "result": None, **error}
