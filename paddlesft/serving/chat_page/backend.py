"""A server of OpenAI's API, as the chat page calls it."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from paddlesft.errors import ConfigError, PaddleSFTError

LONGEST_LINE = 1 << 22  # bytes of one event; more is no answer of such a server
LONGEST_DETAIL = 600  # characters of a server's own words that are shown
_TIMES = httpx.Timeout(connect=5.0, read=600.0, write=30.0, pool=30.0)  # a long prompt may be silent for minutes


class BackendError(PaddleSFTError):
    """A request that brought no reply.

    Args:
        kind: ``unreachable``, ``key``, ``missing``, ``busy``, ``not_ready``, ``refused``, ``failed`` or ``cut_off``.
        detail: what the server says itself, or how the connection failed; may be empty.
        status: HTTP status; None where there was no answer.
        wait: seconds after which the server asks to be called again.
    """

    def __init__(self, kind: str, detail: str = "", status: int | None = None, wait: str | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.status, self.wait = kind, detail[:LONGEST_DETAIL], status, wait


@dataclass(frozen=True)
class ServedName:
    """A model as ``/v1/models`` names it.

    Attributes:
        name: of the model.
        adapter: whether it is a fine-tuned one, where the server says so.
        context: tokens of prompt and reply that it holds, where the server says so.
    """

    name: str
    adapter: bool = False
    context: int | None = None


@dataclass(frozen=True)
class Text:
    """The next piece of a reply."""

    text: str


@dataclass(frozen=True)
class End:
    """The end of a reply; token counts are None where the server does not say them."""

    finish_reason: str | None
    prompt_tokens: int | None = None
    tokens: int | None = None


class Backend:
    """The server.

    Args:
        url: its address, with or without ``/v1``.
        key: sent as bearer token; None: none is sent.

    Raises:
        ConfigError: the address is none of HTTP.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url: found {url!r}; allowed: an address such as http://127.0.0.1:8010")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._proxies = not _is_this_machine(parts.hostname)
        self._opened: httpx.AsyncClient | None = None

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._opened is None:  # made where it is used: it belongs to an event loop
            self._opened = httpx.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                timeout=_TIMES,
                trust_env=self._proxies,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            )
        return self._opened

    async def models(self) -> list[ServedName]:
        """Return what the server serves, in its order.

        Raises:
            BackendError: it does not say.
        """
        try:
            answer = await self._client.get("/v1/models", timeout=5.0)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_answer(error) from None
        if answer.status_code != 200:
            raise _refusal(answer)
        try:
            entries = answer.json()["data"]
            return [_served_name(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BackendError("failed", "/v1/models holds no list of models", answer.status_code) from None

    async def reply(
        self, model: str | None, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]
    ) -> AsyncIterator[Text | End]:
        """Yield a reply's pieces, then its end. Closing the iterator closes the connection, and the server stops.

        Args:
            model: which; None: the server's own choice.
            messages: the conversation, each with role and content.
            options: further fields of the request.

        Raises:
            BackendError: no reply, or none to its end.
        """
        asked = {**options, "messages": list(messages), "stream": True, "stream_options": {"include_usage": True}}
        if model:
            asked["model"] = model
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=asked) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise _refusal(answer)
                async with aclosing(_read(answer)) as events:
                    async for event in events:
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_answer(error) from None


def _served_name(entry: Mapping[str, Any]) -> ServedName:
    context = entry.get("context_length")
    return ServedName(
        str(entry["id"]), bool(entry.get("adapter")), context if isinstance(context, int) and context > 1 else None
    )


async def _read(answer: httpx.Response) -> AsyncIterator[Text | End]:
    end = End(None)
    async for data in _events(answer):
        if data == "[DONE]":
            yield end
            return
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                raise BackendError("failed", _message(chunk) or data)
            usage = chunk.get("usage") or {}
            choice = (chunk.get("choices") or [{}])[0]
            piece = (choice.get("delta") or {}).get("content")
            end = End(
                choice.get("finish_reason") or end.finish_reason,
                usage.get("prompt_tokens", end.prompt_tokens),
                usage.get("completion_tokens", end.tokens),
            )
        except (ValueError, AttributeError, TypeError, LookupError):
            raise BackendError("failed", f"an event that is no piece of a reply: {data[:80]}") from None
        if piece:
            yield Text(piece)
    if end.finish_reason is None:
        raise BackendError("cut_off")
    yield end


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield what stands behind ``data:``.

    Lines end with \\n or \\r\\n here and nowhere else: httpx would end them at U+2028, too, which replies may hold.
    """
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8", "replace").strip()
        if len(rest) > LONGEST_LINE:
            raise BackendError("failed", "a line without end")


def _no_answer(error: Exception) -> BackendError:
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.ReadTimeout):
        return BackendError("cut_off", type(error).__name__)
    return BackendError("unreachable", type(error).__name__)


_KINDS = {401: "key", 403: "key", 404: "missing", 429: "busy", 503: "not_ready"}


def _refusal(answer: httpx.Response) -> BackendError:
    status = answer.status_code
    kind = _KINDS.get(status, "refused" if 400 <= status < 500 else "failed")
    try:
        detail = _message(answer.json())
    except ValueError:
        detail = ""
    return BackendError(kind, detail, status, answer.headers.get("Retry-After"))


def _message(content: Any) -> str:
    """Return what the server says about an error: OpenAI's shape, or only a text."""
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
