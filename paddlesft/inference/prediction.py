"""A data file in, a file of replies out: written as they come, and continued where it was left."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paddlesft.data.conversation import Conversation
from paddlesft.data.reading import read_conversations
from paddlesft.inference.generation import Generated, generate
from paddlesft.inference.loading import Loaded
from paddlesft.inference.output_file import OutputFile, digest
from paddlesft.inference.prompts import fit_prompt, prompt_limit
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.inference.throughput import Stopwatch, Throughput

logger = logging.getLogger("paddlesft")

DEFAULT_PROMPTS = ("hello world, how are you?", "你好，请问你是谁?")  # what PaddleNLP's predictor asks without a file
BENCHMARK_WARM_UP, BENCHMARK_ROUNDS = 2, 10


@dataclasses.dataclass(frozen=True)
class PredictionRow:
    """One row to answer.

    Attributes:
        prompt: the conversation up to the message to be answered.
        tgt: the reference reply, "" when the row has none.
    """

    prompt: Conversation
    tgt: str = ""

    @property
    def src(self) -> str | list[str]:
        """What the user says: a text, or the list of texts of several rounds, as in PaddleNLP's data."""
        texts = [message.content for message in self.prompt.messages if message.role == "user"]
        return texts[0] if len(texts) == 1 else texts

    def facts(self) -> dict[str, Any]:
        """Return everything that decides the reply, for the comparison when a run is continued."""
        messages = [message.for_template() for message in self.prompt.messages]
        return {"messages": messages, "tools": self.prompt.tools, "tgt": self.tgt}


@dataclasses.dataclass
class PredictionReport:
    """What happened.

    Attributes:
        rows: rows of the input.
        kept: replies that an earlier run had written.
        repaired: whether that run had left half a line, which was removed.
        shortened: prompts that were longer than allowed.
        finish_reasons: how many replies ended by "stop" and by "length", this run.
        context_full: how many of the latter ended because the model's context was full.
        throughput: counts and speed of this run.
    """

    rows: int
    kept: int = 0
    repaired: bool = False
    shortened: int = 0
    finish_reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    context_full: int = 0
    throughput: Throughput = dataclasses.field(default_factory=Throughput)


def read_rows(
    data_file: str | Path, column_map: dict[str, str] | None = None, limit: int | None = None
) -> list[PredictionRow]:
    """Read the rows of a data file, in any of the training formats. References may be missing.

    Raises:
        DataError: rows that cannot be used, all of them listed.
    """
    result = read_conversations([data_file], column_map=column_map, limit=limit, reply_needed=False)
    return [row_of(conversation) for conversation in result.usable()]


def rows_of_prompts(prompts: Sequence[str]) -> list[PredictionRow]:
    """Return rows that ask one question each."""
    return [row_of(Conversation.of([{"role": "user", "content": text}])) for text in prompts]


def row_of(conversation: Conversation) -> PredictionRow:
    """Split a conversation into the prompt of its last reply and that reply, the reference."""
    messages = conversation.messages
    if messages[-1].role != "assistant":
        return PredictionRow(conversation)
    reference = messages[-1].content
    if not reference and messages[-1].tool_calls:
        reference = json.dumps(messages[-1].tool_calls, ensure_ascii=False)
    return PredictionRow(dataclasses.replace(conversation, messages=messages[:-1]), reference)


def predict_file(
    loaded: Loaded,
    rows: Sequence[PredictionRow],
    output_file: str | Path,
    options: SamplingOptions,
    batch_size: int = 1,
    src_length: int = 1024,
    overwrite: bool = False,
    on_reply: Callable[[int, PredictionRow, Generated], None] | None = None,
) -> PredictionReport:
    """Answer rows and write one JSON line ``{"src", "tgt", "output"}`` for each, in order.

    Lines are written after each batch. A run that was stopped, however hard, is continued by the same call: complete
    lines stay, half a line is removed, and the result equals that of an uninterrupted run.

    Args:
        loaded: the model.
        rows: what to answer.
        output_file: the file of replies; ``OUTPUT_FILE.settings.json`` beside it records what made them.
        options: how to generate. ``seed`` None is replaced by a random one, which is recorded for continuing.
        batch_size: rows generated together; the replies do not depend on it.
        src_length: most tokens of a prompt; see ``fit_prompt``.
        overwrite: start anew instead of continuing.
        on_reply: called as ``on_reply(row, PredictionRow, Generated)`` after the line was written.

    Returns:
        Counts and speed.

    Raises:
        UserError: the output file exists and belongs to other rows, another model or other settings; every difference
            is named.
    """
    limit = prompt_limit(src_length, options.max_new_tokens, loaded.context_length)
    settings = {
        "rows": len(rows),
        "input": digest([row.facts() for row in rows]),
        **loaded.identity(),
        "dtype": str(loaded.model.config.dtype),
        "chat_template": f"{loaded.renderer.template.name} sha256:{loaded.renderer.template.fingerprint}",
        "system_prompt": loaded.renderer.system_prompt,
        "prompt_tokens": limit,
        **{key: value for key, value in dataclasses.asdict(options).items() if options.do_sample or key != "seed"},
    }
    report = PredictionReport(len(rows))
    with OutputFile(output_file, settings, overwrite, random_keys=("seed",)) as output:
        options = options.replace(seed=output.settings.get("seed"))
        report.kept, report.repaired = output.check_lines(rows), output.repaired
        starts = [report.kept, *range(0, len(rows), batch_size)]  # the first batch ends where an uninterrupted one does
        for start in sorted({start for start in starts if report.kept <= start < len(rows)}):
            batch = rows[start : start // batch_size * batch_size + batch_size]
            prompts = [fit_prompt(loaded.renderer, row.prompt, limit) for row in batch]
            report.shortened += sum(prompt.shortened for prompt in prompts)
            replies = _timed(loaded, [prompt.ids for prompt in prompts], options, report.throughput, first_row=start)
            report.finish_reasons.update(reply.finish_reason for reply in replies)
            report.context_full += sum(
                reply.finish_reason == "length" and reply.num_tokens < options.max_new_tokens for reply in replies
            )
            output.write({"src": row.src, "tgt": row.tgt, "output": reply.text} for row, reply in zip(batch, replies))
            if on_reply is not None:
                for index, (row, reply) in enumerate(zip(batch, replies), start):
                    on_reply(index, row, reply)
    if report.shortened:
        what = "1 prompt" if report.shortened == 1 else f"{report.shortened} prompts"
        why = "" if limit == src_length else f" (the model's context of {loaded.context_length} holds the reply, too)"
        logger.warning("%s had more than %d tokens%s; the beginning was left out.", what, limit, why)
    return report


def benchmark(
    loaded: Loaded,
    rows: Sequence[PredictionRow],
    options: SamplingOptions,
    src_length: int = 1024,
    warm_up: int = BENCHMARK_WARM_UP,
    rounds: int = BENCHMARK_ROUNDS,
) -> Throughput:
    """Answer the same batch again and again, every reply of ``max_new_tokens`` tokens, and measure.

    Args:
        loaded: the model.
        rows: the batch.
        options: how to generate; stop tokens are held back.
        src_length: most tokens of a prompt.
        warm_up: rounds before measuring.
        rounds: rounds measured.
    """
    limit = prompt_limit(src_length, options.max_new_tokens, loaded.context_length)
    prompts = [fit_prompt(loaded.renderer, row.prompt, limit).ids for row in rows]
    options = options.replace(min_new_tokens=options.max_new_tokens)
    for _ in range(warm_up):
        _timed(loaded, prompts, options, Throughput())
    total = Throughput()
    for _ in range(rounds):
        _timed(loaded, prompts, options, total)
    return total


def _timed(
    loaded: Loaded, prompts: list[list[int]], options: SamplingOptions, total: Throughput, first_row: int = 0
) -> list[Generated]:
    watch = Stopwatch()
    replies = generate(
        loaded.model,
        prompts,
        options,
        loaded.stop_token_ids,
        loaded.pad_token_id,
        on_token=lambda row, token, text: watch.token(row),
        tokenizer=loaded.tokenizer,
        rows=range(first_row, first_row + len(prompts)),
    )
    watch.stop(total, sum(map(len, prompts)), sum(reply.num_tokens for reply in replies), len(replies))
    return replies
