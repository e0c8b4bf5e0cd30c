"""Generation: the loop that turns prompts into replies, one token for every row at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle

from paddlesft.errors import UserError
from paddlesft.inference.reply import Generated, GrowingReply, token_limits
from paddlesft.inference.runners import runner_of
from paddlesft.inference.sampling import RowSampler, Sampler, SamplingOptions
from paddlesft.inference.step_model import StepModel
from paddlesft.inference.streaming import TextStream

OnToken = Callable[[int, int, str], None]


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
    limits = token_limits(model.config, prompts, options)
    if options.stop and tokenizer is None:
        raise UserError("Stop strings need the model's tokenizer: pass tokenizer=... to generate.")
    stop_ids = frozenset(stop_token_ids) | frozenset(options.stop_token_ids)
    rows = range(len(prompts)) if rows is None else rows
    replies = [
        GrowingReply(index, limit, stop_ids, options, TextStream(tokenizer, options.stop) if tokenizer else None)
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
