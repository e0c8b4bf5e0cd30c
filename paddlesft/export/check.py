"""Proof that a graph, as it was written, computes what the model in memory does.

The truth is PaddleNLP's own forward pass (``EagerRunner``), one prompt at a time, so that neither our steps nor padding
has a part in it. It takes the most likely token again and again. The graph is then run on the same tokens, all prompts
in one ragged batch and each alone; where it prefers the same token every time, its own greedy reply is the same, token
for token. Rounding alone may turn the choice between two logits that are all but equal: such a tie is counted, and both
go on from the truth's token.

Shape legend: b prompts, t new tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddlesft.checkpoints.verify import RELATIVE_BOUND
from paddlesft.data.conversation import Conversation, Message
from paddlesft.data.rendering import Renderer
from paddlesft.errors import PaddleSFTError
from paddlesft.inference.eager import EagerRunner
from paddlesft.inference.runners import runner_of
from paddlesft.inference.step_model import StepModel

# From a few tokens to a few dozen, in two scripts, and code.
QUESTIONS = (
    "Hi",
    "What is the capital of France?",
    "你好，请问你是谁?",
    "Explain what this function returns for x = 4:\n\ndef f(x):\n    return sum(i * i for i in range(x)) % 7\n",
    "请用三句话介绍一下北京的秋天。",
    "Translate into French, and keep the order of the sentences: The train was late. We waited in the rain for almost "
    "two hours, reading the same newspaper twice, until somebody told us that it would not come at all.",
)
NEW_TOKENS = 32
# Rounding an activation to 8 bits may turn the smallest difference before it into a whole step, in every layer.
ROUNDED_ACTIVATIONS = 5e-2
# ONNX Runtime's products of codes round activations that the model in memory does not: seen 6.6 % (SmolLM2, int4).
ROUNDED_BY_BLOCKS = 1e-1


class GraphDiffers(PaddleSFTError):
    """A graph does not compute what the model does. Nothing outside the program is wrong: exit code 1."""


@dataclass(frozen=True)
class Prompt:
    """A text to compare on.

    Attributes:
        text: what the user says, for tables.
        ids: its tokens, template included.
    """

    text: str
    ids: Sequence[int]


@dataclass(frozen=True)
class Reply:
    """What the model in memory says to a prompt.

    Attributes:
        prompt: the prompt.
        tokens: the t most likely tokens, one after the other; stop tokens do not end it.
        logits: float32 [t, v], from which each was chosen.
    """

    prompt: Prompt
    tokens: list[int]
    logits: np.ndarray


@dataclass(frozen=True)
class PromptResult:
    """How far the graph is from the model on one prompt.

    Attributes:
        text: the prompt's.
        prompt_tokens: its length.
        new_tokens: t.
        equal: tokens that the graph chose too, in the batch and alone.
        ties: tokens that it did not, where both were as likely but for rounding.
        max_difference: largest difference of two logits.
        fault: what is wrong; "" where nothing is.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    equal: int
    ties: int
    max_difference: float
    fault: str = ""


@dataclass(frozen=True)
class CheckReport:
    """How far a graph is from the model in memory.

    Attributes:
        prompts: one result each.
        bound: the largest difference that logits may have.
        largest_logit: of the model, by its absolute value; the bound is a share of it.
    """

    prompts: list[PromptResult]
    bound: float
    largest_logit: float

    @property
    def max_difference(self) -> float:
        """The largest difference of two logits."""
        return max(one.max_difference for one in self.prompts)

    @property
    def ties(self) -> int:
        """Tokens that rounding decided."""
        return sum(one.ties for one in self.prompts)

    @property
    def faults(self) -> list[str]:
        """What is wrong, one sentence for each prompt with a fault."""
        return [one.fault for one in self.prompts if one.fault]

    def refuse_faults(self) -> None:
        """Raise where something is wrong.

        Raises:
            GraphDiffers: naming prompts and positions.
        """
        if self.faults:
            raise GraphDiffers(
                "The graph does not compute what the model in memory does:\n"
                + "\n".join(f"  - {fault}" for fault in self.faults)
                + "\nIt was not kept. This is no fault of the model: please report it with these lines and the "
                "versions that paddlesft doctor prints."
            )

    def facts(self) -> dict[str, Any]:
        """Return what is recorded with a graph, as JSON values."""
        return {
            "prompts": len(self.prompts),
            "new_tokens": self.prompts[0].new_tokens,
            "equal_tokens": sum(one.equal for one in self.prompts),
            "ties": self.ties,
            "max_abs_logit_diff": self.max_difference,
            "bound": self.bound,
        }


def check_prompts(renderer: Renderer, limit: int | None = None) -> list[Prompt]:
    """Return the fixed questions as a model is asked them.

    Args:
        renderer: of the model's template.
        limit: most tokens of a prompt; longer ones are left out, but for the shortest.
    """
    prompts = [
        Prompt(text, renderer.render_prompt(Conversation([Message("user", text)]).messages)) for text in QUESTIONS
    ]
    prompts.sort(key=lambda prompt: len(prompt.ids))
    return prompts[:1] + [prompt for prompt in prompts[1:] if limit is None or len(prompt.ids) <= limit]


def replies_of(model: paddle.nn.Layer, prompts: Sequence[Prompt], new_tokens: int = NEW_TOKENS) -> list[Reply]:
    """Let the model in memory answer, by PaddleNLP's own forward pass, one prompt at a time.

    Args:
        model: bare or with its adapter, in evaluation mode.
        prompts: what it is asked.
        new_tokens: t.
    """
    replies = []
    for prompt in prompts:
        runner = EagerRunner(model)
        logits = [_array(runner.prefill([prompt.ids]))[0]]
        while len(logits) < new_tokens:
            logits.append(_array(runner.step(logits[-1].argmax(keepdims=True)))[0])
        replies.append(Reply(prompt, [int(one.argmax()) for one in logits], np.stack(logits)))
    return replies


def compare_with(graph: StepModel, replies: Sequence[Reply], share: float = RELATIVE_BOUND["float32"]) -> CheckReport:
    """Run a graph on the tokens of a model's replies, in one ragged batch and prompt by prompt.

    Args:
        graph: what is to be proved.
        replies: of ``replies_of``.
        share: of the largest logit, by which logits may differ.

    Returns:
        The report; ``refuse_faults`` raises where something is wrong.
    """
    largest = max(float(np.abs(reply.logits).max()) for reply in replies)
    bound = share * largest
    together = _logits_along(graph, replies)
    results = []
    for reply, in_batch in zip(replies, together):
        ways = (("in a batch", in_batch), ("alone", _logits_along(graph, [reply])[0]))
        results.append(_compare(reply, ways, bound))
    return CheckReport(results, bound, largest)


def check_graph(
    graph: StepModel,
    model: paddle.nn.Layer,
    prompts: Sequence[Prompt],
    new_tokens: int = NEW_TOKENS,
    share: float = RELATIVE_BOUND["float32"],
) -> CheckReport:
    """Compare a graph with the model in memory; see ``replies_of`` and ``compare_with``."""
    return compare_with(graph, replies_of(model, prompts, new_tokens), share)


def _logits_along(graph: StepModel, replies: Sequence[Reply]) -> list[np.ndarray]:
    """Run a graph along given tokens; logits [t, v] of each row."""
    runner = runner_of(graph)
    rows = [[one] for one in _array(runner.prefill([reply.prompt.ids for reply in replies]))]
    for number in range(len(replies[0].tokens) - 1):
        tokens = np.array([reply.tokens[number] for reply in replies], dtype=np.int64)
        for row, logits in zip(rows, _array(runner.step(tokens))):
            row.append(logits)
    return [np.stack(row) for row in rows]


def _compare(reply: Reply, ways: Sequence[tuple[str, np.ndarray]], bound: float) -> PromptResult:
    wanted, count = np.array(reply.tokens), len(reply.tokens)
    equal, tied = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    largest, fault = 0.0, ""
    for way, logits in ways:
        differences = np.abs(logits - reply.logits).max(axis=1)
        differences[~np.isfinite(differences)] = np.inf
        largest = max(largest, float(differences.max()))
        chosen = logits.argmax(axis=1)
        rows = np.arange(count)
        behind = reply.logits[rows, wanted] - reply.logits[rows, chosen]
        other = chosen != wanted
        wrong = (other & ~(behind <= 2 * bound)) | ~(differences <= bound)
        equal &= ~other
        tied |= other & ~wrong
        if wrong.any() and not fault:
            at = int(wrong.argmax())
            fault = (
                f'prompt "{_shortened(reply.prompt.text)}" ({len(reply.prompt.ids)} tokens) {way}, new token {at + 1} '
                f"of {count}: the model takes {wanted[at]}, the graph {chosen[at]}; largest logit difference "
                f"{differences[at]:.2e}, allowed {bound:.2e}"
            )
    return PromptResult(
        reply.prompt.text, len(reply.prompt.ids), count, int(equal.sum()), int((tied & ~equal).sum()), largest, fault
    )


def _array(logits: Any) -> np.ndarray:
    return logits if isinstance(logits, np.ndarray) else logits.astype("float32").numpy()


def _shortened(text: str, width: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
