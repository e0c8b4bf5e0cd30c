"""Generation: the loop that turns prompts into replies, one token for every row at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle

from paddlesft.errors import UserError
from paddlesft.inference.runners import runner_of
from paddlesft.inference.sampling import RowSampler, Sampler, SamplingOptions
from paddlesft.inference.step_model import StepModel
from paddlesft.inference.streaming import TextStream
from paddlesft.models.families import family_of

OnToken = Callable[[int, int, str], None]


@dataclasses.dataclass
class Generated:
    """One reply.

    Attributes:
        token_ids: the reply without the stop token that ended it.
        finish_reason: "stop" (stop token or stop string) or "length" (``max_new_tokens`` or the model's context).
        text: the reply's text up to the stop string; empty unless ``generate`` was given a tokenizer.
        num_tokens: tokens generated, the stop token included.
    """

    token_ids: list[int]
    finish_reason: str
    text: str = ""
    num_tokens: int = 0


def generate(
    model: paddle.nn.Layer | StepModel,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    stop_token_ids: Sequence[int] = (),
    pad_token_id: int = 0,
    on_token: OnToken | None = None,
    *,
    tokenizer: Any = None,
    rows: Sequence[int] | None = None,
) -> list[Generated]:
    """Generate a reply for each prompt, all of them in one batch.

    Args:
        model: a causal language model of paddlenlp, plain or wrapped in ``LoRAModel`` or ``PrefixModelForCausalLM``,
            which runs in evaluation mode without gradients and is left in the mode it came in; or a static graph.
        prompts: token ids of each prompt; lengths may differ.
        options: how tokens are chosen and when replies end.
        stop_token_ids: ids that end a reply, besides ``options.stop_token_ids``.
        pad_token_id: any valid id; it fills shorter prompts and is masked.
        on_token: called as ``on_token(row, token_id, text)`` for each generated token, ``row`` counting from 0 in
            ``prompts``; ``text`` is what became certain with it ("" without a tokenizer). Text that was held back comes
            with the last token.
        tokenizer: needed for text: ``Generated.text``, the callback's text, stop strings.
        rows: numbers of the prompts in their task, for the random numbers; 0, 1, ... by default. Give the row in the
            file when a file is predicted in batches.

    Returns:
        The replies in the order of the prompts.

    Raises:
        UserError: a prompt is empty or leaves no room in the model's context, or stop strings come without a tokenizer.
    """
    if not prompts:
        return []
    limits = _token_limits(model.config, prompts, options)
    if options.stop and tokenizer is None:
        raise UserError("Stop strings need the model's tokenizer: pass tokenizer=... to generate.")
    stop_ids = frozenset(stop_token_ids) | frozenset(options.stop_token_ids)
    rows = range(len(prompts)) if rows is None else rows
    replies = [
        _Reply(index, limit, stop_ids, options, TextStream(tokenizer, options.stop) if tokenizer else None)
        for index, limit in enumerate(limits)
    ]
    sampler = Sampler([RowSampler(options, prompt, stop_ids, row) for prompt, row in zip(prompts, rows)])
    active = replies
    with evaluating(model):
        runner = runner_of(model, pad_token_id)
        logits = runner.prefill(prompts)
        while True:
            tokens = sampler(logits)
            for reply, token in zip(active, tokens.tolist()):
                text = reply.add(token)
                if on_token is not None:
                    on_token(reply.index, token, text)
            going = [i for i, reply in enumerate(active) if reply.finish_reason is None]
            if not going:
                break
            if len(going) < len(active):
                active = [active[i] for i in going]
                tokens = tokens[going]
                runner.keep(going)
                sampler.keep(going)
            logits = runner.step(tokens)
    return [reply.result() for reply in replies]


class _Reply:
    """A reply being written: decides when it is finished."""

    def __init__(
        self, index: int, limit: int, stop_ids: frozenset[int], options: SamplingOptions, stream: TextStream | None
    ) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self._limit = limit
        self._stop_ids = stop_ids
        self._min_new_tokens = options.min_new_tokens
        self._stream = stream
        self._token_ids: list[int] = []
        self._num_tokens = 0

    def add(self, token: int) -> str:
        """Take the next token; return the text that became certain."""
        self._num_tokens += 1
        may_stop = self._num_tokens >= self._min_new_tokens
        text = ""
        if token in self._stop_ids:  # the sampler does not choose one before min_new_tokens
            self.finish_reason = "stop"
        else:
            self._token_ids.append(token)
            if self._stream is not None:
                text = self._stream.push(token, may_stop)
            if self._num_tokens >= self._limit:
                self.finish_reason = "length"
        if self._stream is not None:
            if self.finish_reason is not None:
                text += self._stream.finish(may_stop)
            if self._stream.stopped_by is not None:
                self.finish_reason = "stop"
        return text

    def result(self) -> Generated:
        text = self._stream.text if self._stream is not None else ""
        return Generated(self._token_ids, self.finish_reason, text, self._num_tokens)


def _token_limits(config: object, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[int]:
    """Return how many tokens each reply may have; raise where a prompt cannot be answered at all."""
    context = family_of(config).context_length(config)
    problems = []
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            problems.append(f"prompt {index} has no tokens; a reply needs at least one token to follow")
        elif context is not None and len(prompt) >= context:
            problems.append(
                f"prompt {index} has {len(prompt)} tokens; the model's context holds {context}, the reply included"
            )
    if problems:
        raise UserError(
            "Cannot generate: " + "; ".join(problems[:20]) + ". Shorten the prompts (src_length cuts them)."
        )
    return [min(options.max_new_tokens, context - len(prompt) if context else 2**31) for prompt in prompts]


@contextmanager
def evaluating(model: paddle.nn.Layer | StepModel) -> Iterator[None]:
    """Put a model into evaluation mode for a while; static graphs have no other."""
    if not isinstance(model, paddle.nn.Layer):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
