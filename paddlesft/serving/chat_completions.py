"""``POST /v1/chat/completions``, as OpenAI's API has it."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from paddlesft.data.conversation import Message, tool_call
from paddlesft.data.formats.fields import tools_of
from paddlesft.inference.engine_requests import Finished, Piece, TokenInfo
from paddlesft.serving.log_probabilities import token_entry, without_stop
from paddlesft.serving.requests import GenerationParameters, read_object
from paddlesft.serving.served_models import ServedModel
from paddlesft.serving.service import Service, wait_for_all
from paddlesft.serving.sse import EventStream, answer, client_has_gone
from paddlesft.serving.tool_calls import ToolCallReader
from paddlesft.serving.usage import usage_of

MOST_ALTERNATIVES = 20


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """What an assistant has called."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call in an assistant's message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        """Leave out keys without a value: clients send back what a reply had, with more keys than are read here."""
        return {k: v for k, v in message.items() if v is not None} if isinstance(message, dict) else message

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        """Name a picture or sound, before each branch of the type tells what it would have liked."""
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError(
                    "unsupported_part", "parts of type '{kind}' are not supported, only text", {"kind": kind[:40]}
                )
        return content

    def as_message(self) -> Message:
        """Return the message as the renderer takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        calls = [tool_call(call.function.name, call.function.arguments) for call in self.tool_calls or []]
        role = "system" if self.role == "developer" else self.role
        return Message(role, text, tool_calls=calls or None, name=self.name)


class ChatCompletionRequest(GenerationParameters):
    """What ``/v1/chat/completions`` takes."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, str]]] = {
        "audio": (None, "replies are text"),
        "functions": (None, "it was replaced by tools; send those"),
        "function_call": (None, "it was replaced by tool_choice"),
        "modalities": (["text"], "replies are text"),
        "parallel_tool_calls": (True, "the model decides how many tools it calls"),
        "prediction": (None, "drafts are not used"),
        "reasoning_effort": (None, "the model's template decides how it thinks"),
        "response_format": ({"type": "text"}, "replies cannot be held to a format; ask for it in the prompt"),
        "service_tier": ("auto", "there is one tier"),
        "store": (False, "nothing is stored"),
        "verbosity": (None, "ask for it in the prompt"),
        "web_search_options": (None, "the server has no access to the web"),
        "best_of": (1, "send n and choose"),
        "echo": (False, "a chat has nothing to echo"),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None

    def problems(self) -> list[tuple[str, str]]:
        """Return what else is wrong."""
        found = []
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            found.append(("max_tokens", "max_tokens and max_completion_tokens differ; send one of them."))
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        if self.top_logprobs is not None and not self.logprobs:
            found.append(("top_logprobs", "top_logprobs only goes with logprobs: true."))
        if self.tool_choice not in (None, "auto", "none"):
            found.append(("tool_choice", "tool_choice can be auto or none: the model cannot be made to call a tool."))
        for number, message in enumerate(self.messages):
            if message.content is None and not message.tool_calls:
                found.append((f"messages[{number}].content", f"messages[{number}] has no content."))
            if message.tool_calls and message.role != "assistant":
                found.append((f"messages[{number}].tool_calls", f"messages[{number}]: only assistants call tools."))
        return found

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call tools."""
        return bool(self.tools) and self.tool_choice != "none"


class OfferedFunction(BaseModel):
    """What a tool does."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool on offer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: OfferedFunction


ChatCompletionRequest.model_rebuild()


def create_blueprint(service: Service) -> Blueprint:
    """Return the route, for a Flask application."""
    blueprint = Blueprint("chat_completions", __name__)

    @blueprint.post("/v1/chat/completions")
    def chat_completions() -> Response:
        content = read_object(request)
        asked = ChatCompletionRequest.read(content)
        served = service.models.find(asked.model)
        service.refuse_when_full()
        tools = tools_of(content) if asked.offers_tools else None  # as training reads them: templates write their keys
        prompt = service.chat_prompt(served, [message.as_message() for message in asked.messages], tools)
        options = service.options(asked, service.settings.default_max_tokens)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        tickets = service.submit(served, prompt, options, asked.n or 1, logprobs)
        head = {
            "id": f"chatcmpl-{request.environ.get('paddlesft.request_id', 'local')}",
            "created": int(time.time()),
            "model": served.name,
        }
        if asked.streams:
            told = _Stream(head, asked, served, len(tickets), bool(tools))
            return answer(EventStream(tickets, told.opening(), told.chunks, told.closing, client_has_gone()))
        ended = wait_for_all(tickets, client_has_gone())
        choices = [_choice(number, *one, asked, served, bool(tools)) for number, one in enumerate(ended)]
        usage = usage_of([finished for finished, _ in ended])
        return jsonify({**head, "object": "chat.completion", "choices": choices, "usage": usage})

    return blueprint


def _choice(
    number: int,
    finished: Finished,
    tokens: list[TokenInfo],
    asked: ChatCompletionRequest,
    served: ServedModel,
    tools: bool,
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": finished.text, "refusal": None}
    reason = finished.finish_reason
    if tools:
        reader = ToolCallReader()
        text = reader.push(finished.text)[0] + reader.finish()
        if reader.calls:
            message |= {"content": text.strip() or None, "tool_calls": reader.calls}
            reason = "tool_calls" if reason == "stop" else reason
    content = None
    if asked.logprobs:
        content = {"content": _entries(tokens, served, asked), "refusal": None}
    return {"index": number, "message": message, "logprobs": content, "finish_reason": reason}


def _entries(tokens: list[TokenInfo], served: ServedModel, asked: ChatCompletionRequest) -> list[dict[str, Any]]:
    kept = without_stop(tokens, served.stop_token_ids, asked.stop_token_ids)
    return [token_entry(one, served.tokenizer) for one in kept]


class _Stream:
    """Turns what happens to replies into the objects of a stream."""

    def __init__(
        self, head: dict[str, Any], asked: ChatCompletionRequest, served: ServedModel, count: int, tools: bool
    ) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._asked, self._served, self._count = asked, served, count
        self._readers = [ToolCallReader() if tools else None for _ in range(count)]
        self._ended: list[Finished] = []

    def _chunk(self, number: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason, **more}
        usage = {"usage": None} if self._asked.counts_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(number, {"role": "assistant", "content": ""}) for number in range(self._count)]

    def chunks(self, number: int, event: Piece | Finished) -> list[dict[str, Any]]:
        reader = self._readers[number]
        if isinstance(event, Finished):
            self._ended.append(event)
            made, reason = [], event.finish_reason
            if reader is not None:
                text = reader.finish()
                made = [self._chunk(number, {"content": text})] if text else []
                reason = "tool_calls" if reader.calls and reason == "stop" else reason
            return [*made, self._chunk(number, {}, reason)]
        text, calls = (event.text, []) if reader is None else reader.push(event.text)
        more = {}
        if self._asked.logprobs:
            entries = _entries(list(event.tokens), self._served, self._asked)
            more = {"logprobs": {"content": entries, "refusal": None}} if entries else {}
        made = [self._chunk(number, {"content": text}, **more)] if text or more else []
        first = 0 if reader is None else len(reader.calls) - len(calls)
        for index, call in enumerate(calls, start=first):
            made.append(self._chunk(number, {"tool_calls": [{"index": index, **call}]}))
        return made

    def closing(self) -> list[dict[str, Any]]:
        if not self._asked.counts_usage:
            return []
        return [{**self._head, "choices": [], "usage": usage_of(self._ended)}]


