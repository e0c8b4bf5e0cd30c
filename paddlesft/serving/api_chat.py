"""``POST /api/chat``: the interface of PaddleNLP's flask_server, with its fields and codes.

A reply comes as one JSON object; with ``"stream": true`` as one object a line, each with the next piece of the reply,
as PaddleNLP 2.7 and later send it. The conversation in ``history`` is part of the prompt, by the model's own template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from flask import Blueprint, Response, request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from paddlesft.data.conversation import Conversation, Message
from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.inference.engine_requests import Finished, Piece
from paddlesft.inference.prompts import fit_prompt
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.serving.errors import API_CHAT, ApiError
from paddlesft.serving.metrics import WatchedTicket
from paddlesft.serving.requests import read_object, validation_error
from paddlesft.serving.served_models import ServedModel
from paddlesft.serving.service import Service, end_error, wait_for_all
from paddlesft.serving.settings import ServingSettings
from paddlesft.serving.sse import client_has_gone

MOST_TURNS = 1000  # of a history
DEFAULTS = {"decode_strategy": "sampling", "top_k": 0, "top_p": 0.7, "temperature": 0.95, "repetition_penalty": 1.0}
_ROLES = {"user": "user", "human": "user", "bot": "assistant", "assistant": "assistant", "system": "system"}


def _whole(value: Any) -> Any:
    """Take 50.0 for 50, as sliders send it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Turn(BaseModel):
    """One entry of ``history`` with a role of its own."""

    model_config = ConfigDict(strict=True, extra="forbid")

    utterance: str
    role: str | None = None


class ChatRequest(BaseModel):
    """What ``/api/chat`` takes; nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid")

    context: str = Field(min_length=1)
    history: list[str | Turn] | str = ""
    top_k: Whole | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_length: Whole | None = Field(None, ge=1)
    min_length: Whole = Field(0, ge=0)
    src_length: Whole | None = Field(None, ge=1)
    extra_info: Any = None
    stream: bool = False
    model: str | None = None
    seed: Whole | None = Field(None, ge=0)


_HISTORY = TypeAdapter(list[str | Turn])


def create_blueprint(service: Service, settings: ServingSettings) -> Blueprint:
    """Return the route, for a Flask application.

    Args:
        service: runs the prompts.
        settings: limits and defaults.
    """
    blueprint = Blueprint("api_chat", __name__)

    @blueprint.post(API_CHAT)
    def api_chat() -> Response:
        asked = read_request()
        served = service.models.find(asked.model)
        service.refuse_when_full()
        options = sampling(asked, settings)
        prompt = prompt_of(asked, served, settings)
        (ticket,) = service.submit(served, prompt, options, param="context")
        gone = client_has_gone()
        if asked.stream:
            lines = Response(_lines(ticket, gone), mimetype="application/x-ndjson")
            lines.call_on_close(ticket.cancel)  # also where not one line was read
            return lines
        ((finished, _),) = wait_for_all([ticket], gone)
        return _json(_success(finished.text))

    return blueprint


def read_request() -> ChatRequest:
    """Read the current request.

    Raises:
        ApiError: 400, the body is not what ``/api/chat`` takes.
    """
    content = read_object(request)
    try:
        asked = ChatRequest.model_validate(content)
    except ValidationError as error:
        raise validation_error(error, ChatRequest) from None
    return asked


def sampling(asked: ChatRequest, settings: ServingSettings) -> SamplingOptions:
    """Return how to generate: what the request says, else the server's defaults, else upstream's.

    Raises:
        ApiError: 400, values that do not go together, or a reply longer than allowed.
    """
    given = {name: getattr(asked, name) for name in ("top_k", "top_p", "temperature", "repetition_penalty", "seed")}
    values = {**DEFAULTS, **settings.defaults, **{name: value for name, value in given.items() if value is not None}}
    length = asked.max_length or settings.default_max_tokens or settings.max_output_tokens
    if length > settings.max_output_tokens:
        raise ApiError(
            400,
            f"max_length is {length}; replies have at most {settings.max_output_tokens} tokens here.",
            param="max_length",
            code="max_tokens_too_large",
        )
    try:
        return SamplingOptions(max_new_tokens=length, min_new_tokens=asked.min_length, **values)
    except UserError as error:
        raise ApiError(400, str(error)) from None


def messages_of(asked: ChatRequest) -> list[Message]:
    """Return the conversation: the history, which alternates between user and bot unless it says who speaks.

    Raises:
        ApiError: 400, the history cannot be read.
    """
    history: Any = asked.history
    if isinstance(history, str):
        history = _history_in_text(history)
    if len(history) > MOST_TURNS:
        raise ApiError(400, f"history has {len(history)} turns; at most {MOST_TURNS} are taken.", param="history")
    messages = []
    for number, turn in enumerate(history):
        text, role = (turn, None) if isinstance(turn, str) else (turn.utterance, turn.role)
        role = role or ("user" if number % 2 == 0 else "bot")
        if role not in _ROLES:
            raise ApiError(
                400, f"history[{number}].role is {role[:40]!r}; allowed: {', '.join(_ROLES)}.", param="history"
            )
        messages.append(Message(_ROLES[role], text))
    return [*messages, Message("user", asked.context)]


def _history_in_text(text: str) -> list[str | Turn]:
    """Read a history that is JSON inside of JSON, as PaddleNLP's own page sends it; other text is one turn."""
    if not text.strip():
        return []
    try:
        return _HISTORY.validate_json(text, strict=True)
    except ValidationError:
        return [text]


def prompt_of(asked: ChatRequest, served: ServedModel, settings: ServingSettings) -> list[int]:
    """Return the prompt's token ids.

    A request that gives ``src_length`` gets its oldest rounds, and at last the beginning of its message, left out to
    fit, as upstream does; without it a prompt that is too long is refused.

    Raises:
        ApiError: 400, the prompt is too long, or the model's template refuses the conversation.
    """
    reply = 1 if asked.max_length is None else asked.max_length
    if asked.src_length is not None and asked.src_length + reply > (served.context_length or math.inf):
        raise ApiError(
            400,
            f"The sum of src_length ({asked.src_length}) and max_length ({reply}) is more than the model's context of "
            f"{served.context_length} tokens.",
            param="src_length",
            code="context_length_exceeded",
        )
    conversation = Conversation(messages_of(asked))
    try:
        if asked.src_length is not None:
            return fit_prompt(served.renderer, conversation, min(asked.src_length, settings.src_length)).ids
        return served.renderer.render_prompt(conversation.messages)
    except PaddleSFTError as error:
        raise ApiError(400, str(error)) from None


def _success(text: str) -> dict[str, Any]:
    return {"error_code": 0, "error_msg": "Success", "result": {"response": {"role": "bot", "utterance": text}}}


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, ensure_ascii=False), mimetype="application/json")


def _lines(ticket: WatchedTicket, gone: Callable[[], bool]) -> Iterator[str]:
    for event in ticket.events():
        if isinstance(event, Piece) and event.text:
            yield json.dumps(_success(event.text), ensure_ascii=False) + "\n"
        elif isinstance(event, Finished) and (error := end_error(event)) is not None:
            yield json.dumps(error.body(API_CHAT), ensure_ascii=False) + "\n"
        elif event is None and gone():
            return
