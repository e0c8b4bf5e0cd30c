"""What every front of the service calls: prompts to the engine, with the limits that hold for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from paddlesft.data.conversation import Message
from paddlesft.errors import PaddleSFTError, UserError
from paddlesft.inference.engine import STOPPING, Engine
from paddlesft.inference.engine_requests import Draining, Finished, GenerationRequest, QueueFull
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.serving.errors import ApiError
from paddlesft.serving.metrics import Metrics, WatchedTicket
from paddlesft.serving.request_log import current
from paddlesft.serving.served_models import ServedModel, ServedModels
from paddlesft.serving.settings import ServingSettings

if TYPE_CHECKING:
    from paddlesft.serving.requests import GenerationParameters

ENDED = {
    "timeout": (504, "The reply took longer than this server allows.", "timeout"),
    "cancelled": (503, "The reply was cancelled.", "cancelled"),
}


class Service:
    """Turns requests into tickets of the engine.

    Args:
        engine: at work.
        models: that are served.
        settings: limits and defaults.
        metrics: count what happens; None: nobody does.
    """

    def __init__(
        self, engine: Engine, models: ServedModels, settings: ServingSettings, metrics: Metrics | None = None
    ) -> None:
        self.engine, self.models, self.settings, self.metrics = engine, models, settings, metrics

    def refuse_when_full(self) -> None:
        """Refuse a request that would not be let in, before work is done for it.

        Raises:
            ApiError: 429 or 503.
        """
        try:
            self.engine.refuse_when_full()
        except PaddleSFTError as error:
            raise _refused(error) from None

    def chat_prompt(
        self, served: ServedModel, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """Return the token ids of a conversation, by the renderer that its training used.

        Raises:
            ApiError: 400, the template refuses the conversation or knows no tools.
        """
        if tools and not served.renderer.template.mentions("tools"):
            raise ApiError(
                400,
                f"The template of {served.name} ({served.renderer.template.name}) knows no tools. Leave tools out, or "
                "serve a model whose template has them.",
                param="tools",
                code="unsupported_parameter",
            )
        try:
            return served.renderer.render_prompt(messages, tools)
        except PaddleSFTError as error:
            raise ApiError(400, str(error), param="messages") from None

    def options(self, asked: GenerationParameters, default_tokens: int | None) -> SamplingOptions:
        """Return how to generate: what the request says, else the server's defaults, else OpenAI's.

        Args:
            asked: the request.
            default_tokens: tokens of a reply where it says nothing; None: as many as the server allows.

        Raises:
            ApiError: 400, values that do not go together, or a reply longer than allowed.
        """
        most = self.settings.max_output_tokens
        length = asked.max_tokens or min(default_tokens or most, most)
        if length > most:
            raise ApiError(
                400, f"max_tokens is {length}; replies have at most {most} tokens here.", param="max_tokens",
                code="max_tokens_too_large",
            )  # fmt: skip
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given = {name: value for name in names if (value := getattr(asked, name)) is not None}
        values: dict[str, Any] = {"decode_strategy": "sampling", **self.settings.defaults, **given}
        if "temperature" in given:
            values["decode_strategy"] = "sampling"  # 0 is greedy by itself
        if values.get("top_k") == -1:
            values["top_k"] = 0
        try:
            return SamplingOptions(
                max_new_tokens=length,
                min_new_tokens=asked.min_tokens,
                seed=None if asked.seed is None else asked.seed % 2**64,
                stop=asked.stop or (),
                stop_token_ids=tuple(asked.stop_token_ids or ()),
                logit_bias=self._biases(asked),
                **values,
            )
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    def _biases(self, asked: GenerationParameters) -> dict[int, float]:
        size = self.engine.config.vocab_size
        for name in asked.logit_bias or {}:
            if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < size):
                raise ApiError(
                    400, f"logit_bias: found the token {name[:20]!r}; allowed are the model's, 0 to {size - 1}.",
                    param="logit_bias", code="invalid_value",
                )  # fmt: skip
        return {int(name): bias for name, bias in (asked.logit_bias or {}).items()}

    def submit(
        self,
        served: ServedModel,
        prompt: Sequence[int],
        options: SamplingOptions,
        choices: int = 1,
        logprobs: int | None = None,
        first_row: int = 0,
        param: str = "messages",
    ) -> list[WatchedTicket]:
        """Ask the engine for replies to a prompt.

        Args:
            served: the model.
            prompt: token ids.
            options: how to generate.
            choices: how many replies.
            logprobs: see ``GenerationRequest``.
            first_row: number of the first of them, for the random numbers.
            param: of the request, that holds the prompt.

        Returns:
            A ticket for each reply.

        Raises:
            ApiError: the prompt is too long, the queue is full, or the server stops.
        """
        self._check_length(served, prompt, param)
        if choices > self.settings.max_choices:
            raise ApiError(
                400, f"n is {choices}; at most {self.settings.max_choices} replies are written for a request.",
                param="n", code="invalid_value",
            )  # fmt: skip
        record, tickets = current(), []
        try:
            for number in range(choices):
                asked = GenerationRequest(
                    prompt, options, served.stop_token_ids, served.tokenizer, served.adapter, first_row + number,
                    logprobs, self.settings.request_timeout, "" if record is None else record.id,
                )  # fmt: skip
                ticket = self.engine.submit(asked)
                tickets.append(WatchedTicket(ticket, self.metrics, served.name, self.settings.log_prompts))
        except PaddleSFTError as error:
            for ticket in tickets:
                ticket.cancel()
            raise _refused(error) from None
        return tickets

    def _check_length(self, served: ServedModel, prompt: Sequence[int], param: str) -> None:
        limits = [(self.settings.src_length, "this server takes")]
        if served.context_length is not None:
            limits.append((served.context_length - 1, f"{served.name} can read"))
        most, whose = min(limits)
        if len(prompt) > most:
            raise ApiError(
                400, f"The prompt has {len(prompt)} tokens; {whose} at most {most}. Shorten it.",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        if not prompt:
            raise ApiError(400, "The prompt has no tokens; a reply needs at least one to follow.", param=param)


def _refused(error: PaddleSFTError) -> ApiError:
    if isinstance(error, QueueFull):
        seconds = str(max(1, round(error.retry_after)))
        return ApiError(429, str(error), "rate_limit_error", code="queue_full", headers={"Retry-After": seconds})
    if isinstance(error, Draining):
        return ApiError(503, "The server is stopping.", "server_error", code="draining", headers={"Retry-After": "5"})
    return ApiError(400, str(error), code="invalid_value")


def end_error(finished: Finished) -> ApiError | None:
    """Return the error that a reply ended with, None where it ended as it should."""
    if finished.finish_reason in ("stop", "length"):
        return None
    if finished.finish_reason in ENDED:
        status, text, code = ENDED[finished.finish_reason]
        return ApiError(status, text, "server_error", code=code)
    stopping = finished.error == STOPPING
    text = finished.error or "The model failed."
    return ApiError(503 if stopping else 500, text, "server_error", code="draining" if stopping else "model_error")


def wait_for_all(tickets: Sequence[Any], gone: Callable[[], bool], poll: float = 0.2) -> list[tuple[Finished, list]]:
    """Wait until all replies have ended; cancel them when the client has gone or one of them fails.

    Args:
        tickets: of the replies.
        gone: whether the client has closed its connection.
        poll: seconds between two questions.

    Returns:
        The end and the tokens of each.

    Raises:
        ApiError: a reply did not end as it should.
    """
    found, looked = [], time.monotonic()
    try:
        for ticket in tickets:
            tokens: list[Any] = []
            for event in ticket.events(poll):
                if time.monotonic() - looked > poll:
                    looked = time.monotonic()
                    if gone():
                        raise ApiError(499, "The client has gone.", code="cancelled")
                if event is None:
                    continue
                if isinstance(event, Finished):
                    error = end_error(event)
                    if error is not None:
                        raise error
                    found.append((event, tokens))
                else:
                    tokens += event.tokens
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return found
