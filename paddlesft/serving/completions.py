"""``POST /v1/completions``, as OpenAI's API has it: prompts without a template."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from flask import Blueprint, Response, jsonify, request
from pydantic import Field

from paddlesft.inference.engine_requests import Finished, Piece
from paddlesft.serving.errors import ApiError
from paddlesft.serving.log_probabilities import token_lists, token_text, without_stop
from paddlesft.serving.requests import GenerationParameters, read_object
from paddlesft.serving.served_models import ServedModel
from paddlesft.serving.service import Service, wait_for_all
from paddlesft.serving.sse import EventStream, answer, client_has_gone
from paddlesft.serving.usage import usage_of

DEFAULT_TOKENS = 16  # OpenAI's
MOST_ALTERNATIVES = 20
MOST_PROMPTS = 16


class CompletionRequest(GenerationParameters):
    """What ``/v1/completions`` takes."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, str]]] = {
        "best_of": (1, "send n and choose"),
        "echo": (False, "the prompt is not sent back"),
        "suffix": (None, "texts cannot be filled in"),
        "response_format": ({"type": "text"}, "replies cannot be held to a format; ask for it in the prompt"),
        "messages": (None, "it belongs to /v1/chat/completions"),
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)

    def problems(self) -> list[tuple[str, str]]:
        """Return what else is wrong."""
        count = len(self.prompts)
        if not 1 <= count <= MOST_PROMPTS:
            return [("prompt", f"prompt has {count} entries; allowed are 1 to {MOST_PROMPTS}.")]
        return []

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def create_blueprint(service: Service) -> Blueprint:
    """Return the route, for a Flask application."""
    blueprint = Blueprint("completions", __name__)

    @blueprint.post("/v1/completions")
    def completions() -> Response:
        asked = CompletionRequest.read(read_object(request))
        served = service.models.find(asked.model)
        service.refuse_when_full()
        options = service.options(asked, DEFAULT_TOKENS)
        prompts = [_ids(prompt, served, service) for prompt in asked.prompts]
        each = asked.n or 1
        most = service.engine.limits.max_rows + service.engine.limits.max_queue
        if len(prompts) * each > most:
            raise ApiError(
                400, f"{len(prompts)} prompts with n {each} ask for {len(prompts) * each} replies; this server takes "
                f"at most {most} at a time.", param="prompt", code="invalid_value",
            )  # fmt: skip
        tickets: list[Any] = []
        try:
            for number, prompt in enumerate(prompts):
                tickets += service.submit(
                    served, prompt, options, each, asked.logprobs, first_row=number * each, param="prompt"
                )
        except ApiError:
            for ticket in tickets:
                ticket.cancel()
            raise
        head = {
            "id": f"cmpl-{request.environ.get('paddlesft.request_id', 'local')}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        if asked.streams:
            told = _Stream(head, asked, served, len(prompts))
            return answer(EventStream(tickets, [], told.chunks, told.closing, client_has_gone()))
        ended = wait_for_all(tickets, client_has_gone())
        choices = []
        for number, (finished, tokens) in enumerate(ended):
            kept = without_stop(tokens, served.stop_token_ids, asked.stop_token_ids)
            logprobs = None if asked.logprobs is None else token_lists(kept, served.tokenizer)
            choices.append(
                {"index": number, "text": finished.text, "logprobs": logprobs, "finish_reason": finished.finish_reason}
            )
        usage = usage_of([finished for finished, _ in ended], len(prompts))
        return jsonify({**head, "choices": choices, "usage": usage})

    return blueprint


def _ids(prompt: str | list[int], served: ServedModel, service: Service) -> list[int]:
    """Return a prompt's token ids; a text gets what the tokenizer puts around every text."""
    if isinstance(prompt, str):
        return served.renderer.encoder.encode_with_special_tokens(prompt)
    size = service.engine.config.vocab_size
    wrong = next((token for token in prompt if not 0 <= token < size), None)
    if wrong is not None:
        raise ApiError(
            400, f"prompt holds the token {wrong}; the model has 0 to {size - 1}.", param="prompt", code="invalid_value"
        )
    return prompt


class _Stream:
    """Turns what happens to replies into the objects of a stream."""

    def __init__(self, head: dict[str, Any], asked: CompletionRequest, served: ServedModel, prompts: int) -> None:
        self._head, self._asked, self._served, self._prompts = head, asked, served, prompts
        self._ended: dict[int, Finished] = {}
        self._written: dict[int, int] = {}

    def _chunk(self, number: int, text: str, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self._asked.counts_usage else {})}

    def chunks(self, number: int, event: Piece | Finished) -> list[dict[str, Any]]:
        if isinstance(event, Finished):
            self._ended[number] = event
            return [self._chunk(number, "", event.finish_reason)]
        logprobs = None
        if self._asked.logprobs is not None:
            kept = without_stop(list(event.tokens), self._served.stop_token_ids, self._asked.stop_token_ids)
            offset = self._written.get(number, 0)
            logprobs = token_lists(kept, self._served.tokenizer, offset) if kept else None
            written = sum(len(token_text(one.token_id, self._served.tokenizer)) for one in kept)
            self._written[number] = offset + written
        return [self._chunk(number, event.text, logprobs=logprobs)] if event.text or logprobs else []

    def closing(self) -> list[dict[str, Any]]:
        if not self._asked.counts_usage:
            return []
        ended = [self._ended[number] for number in sorted(self._ended)]
        return [{**self._head, "choices": [], "usage": usage_of(ended, self._prompts)}]
