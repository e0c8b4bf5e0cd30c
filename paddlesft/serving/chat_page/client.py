"""What the page says to the service, and what it hears: models, replies in pieces, errors in one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

CONNECT_SECONDS = 5.0
SILENT_SECONDS = 120.0  # the service sends something every few seconds, if only a comment


class BackendError(Exception):
    """The service did not answer as it should.

    Args:
        kind: "down", "loading", "busy", "key", "ended" or "refused"; what the page has a sentence for.
        detail: the service's own words, or "".
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass
class Growing:
    """A reply while it comes.

    Attributes:
        text: so far.
        finish_reason: None while it comes.
        prompt_tokens: tokens of the prompt, when the service has told.
        tokens: generated tokens, when the service has told; pieces until then.
        first_seconds: until the first text; None before.
        seconds: so far.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int = 0
    first_seconds: float | None = None
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, chunk: dict[str, Any]) -> None:
        """Take an object of the stream."""
        self.seconds = time.monotonic() - self.began
        usage = chunk.get("usage")
        if usage:
            self.prompt_tokens, self.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                text += f"\n```json\n{json.dumps(call['function'], ensure_ascii=False)}\n```\n"
            if text:
                self.first_seconds = self.seconds if self.first_seconds is None else self.first_seconds
                self.tokens += 1
                self.text += text
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first; None where that says nothing."""
        if self.first_seconds is None or self.tokens < 2 or self.seconds <= self.first_seconds:
            return None
        return (self.tokens - 1) / (self.seconds - self.first_seconds)


class ApiClient:
    """Speaks OpenAI's API.

    Args:
        url: of the service, with or without ``/v1``.
        api_key: sent with every request; None: none is.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.Client(headers=headers, timeout=timeout, limits=limits, trust_env=False)

    def models(self) -> list[dict[str, Any]]:
        """Return the models that the service has, as it describes them.

        Raises:
            BackendError: it does not answer.
        """
        try:
            answer = self._http.get(f"{self.url}/v1/models", timeout=CONNECT_SECONDS)
        except httpx.HTTPError as error:
            raise BackendError("down") from error
        if answer.status_code != 200:
            raise _refused(answer.status_code, answer.content)
        try:
            return [model for model in answer.json()["data"] if isinstance(model["id"], str)]
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError("refused", "its /v1/models is not OpenAI's") from error

    def chat(self, model: str, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Iterator[Growing]:
        """Ask for a reply; yield it as it grows. Closing the iterator ends the reply in the service too.

        Raises:
            BackendError: while iterating.
        """
        body = {"model": model, "messages": messages, **parameters}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        growing = Growing()
        try:
            with self._http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise _refused(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    if not line.startswith("data:"):
                        yield growing  # a comment: the service is there
                        continue
                    content = line.removeprefix("data:").strip()
                    if content == "[DONE]":
                        return
                    chunk = json.loads(content)
                    if "error" in chunk:
                        raise BackendError("ended", str(chunk["error"].get("message", "")))
                    growing.add(chunk)
                    yield growing
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise BackendError("down") from error
        except (httpx.HTTPError, ValueError) as error:
            raise BackendError("ended") from error
        raise BackendError("ended")


def _refused(status: int, body: bytes) -> BackendError:
    try:
        detail = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        detail = f"HTTP {status}"
    return BackendError({401: "key", 403: "key", 429: "busy", 503: "loading"}.get(status, "refused"), detail)
