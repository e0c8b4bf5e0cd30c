"""Rows longer than the model may see: what is cut, by which policy, and how much of it was reply.

Lengths are counted in tokens of the whole row, prompt and reply. The default, ``truncate_left_prompt``, does what
PaddleNLP's ``llm/`` scripts do:

- the template "plain" and one reply: the source is cut on the left to ``src_length``, always; the target is cut on the
  right to what then remains of ``max_length``, and loses its stop token when it is cut;
- any other template: the same, but only when the row is longer than ``max_length``; with several replies the oldest
  rounds are dropped first (the system message stays), and only the last round, when it is too long by itself, is cut
  like a single reply. PaddleNLP cuts the end of that round's question, and with it the mark that a reply follows; here
  its beginning goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paddlesft.data.problems import RowProblem
from paddlesft.data.rendering import Rendered, Renderer

POLICIES = ("error", "drop", "truncate_left_prompt", "truncate_right")


@dataclass(frozen=True)
class Fitted:
    """A row after the policy.

    Attributes:
        row: the row that is trained; None when it is dropped.
        truncated: whether tokens were cut off.
        prompt_tokens_lost: tokens lost that were not trained.
        reply_tokens_lost: trained tokens lost.
    """

    row: Rendered | None
    truncated: bool = False
    prompt_tokens_lost: int = 0
    reply_tokens_lost: int = 0


def fit(row: Rendered, renderer: Renderer, policy: str, src_length: int, max_length: int) -> Fitted:
    """Apply a policy to one row.

    Args:
        row: as rendered.
        renderer: renders again what remains when rounds are dropped.
        policy: one of ``POLICIES``.
        src_length: most tokens that a prompt is cut to (``truncate_left_prompt`` only).
        max_length: most tokens the row may have.

    Raises:
        RowProblem: the policy is "error" and the row is too long, or no trained token would be left.
    """
    length = len(row.input_ids)
    if policy == "truncate_left_prompt":
        cut = _left(row, renderer, src_length, max_length)
    elif length <= max_length:
        return Fitted(row)
    elif policy == "error":
        raise RowProblem(
            "", f"{length} tokens", f"at most max_length={max_length}; raise it, shorten the row or set truncation"
        )
    elif policy == "drop":
        lost = row.num_trained
        return Fitted(None, False, length - lost, lost)
    elif policy == "truncate_right":
        cut = _cut(row, 0, max_length)
    else:
        raise ValueError(f"unknown truncation policy {policy!r}; allowed: {', '.join(POLICIES)}")
    if not any(cut.trained):
        raise RowProblem(
            "",
            f"{row.first_reply} prompt tokens, which leave no room for the reply",
            f"a prompt shorter than max_length={max_length} (src_length={src_length}, truncation={policy})",
        )
    lost_reply = row.num_trained - cut.num_trained
    lost = length - len(cut.input_ids)
    return Fitted(cut, lost > 0, lost - lost_reply, lost_reply)


def _left(row: Rendered, renderer: Renderer, src_length: int, max_length: int) -> Rendered:
    several = len(row.conversation.replies()) > 1
    always = renderer.template.pieces_apart and not several
    if not always and len(row.input_ids) <= max_length:
        return row
    while len(row.input_ids) > max_length:
        shorter = row.conversation.without_first_round()
        if shorter is None or not any(message.trained for message in shorter.messages):
            break
        row = renderer.render(shorter)
    else:
        if several:
            return row
    allowed = min(src_length, max_length)
    if row.first_reply > allowed:
        opening = min(renderer.encoder.opening_length(row.input_ids[: row.first_reply]), allowed - 1)
        row = _cut(row, row.first_reply - allowed, len(row.input_ids), opening)
    return _cut(row, 0, max_length)


def _cut(row: Rendered, begin: int, end: int, opening: int = 0) -> Rendered:
    """Take the tokens from ``begin`` to ``end``; the first ``opening`` of them are those that the row begins with."""
    behind = begin + opening
    ids, trained = ([*all_of[:opening], *all_of[behind:end]] for all_of in (row.input_ids, row.trained))
    first = trained.index(True) if any(trained) else len(trained)
    return replace(row, input_ids=ids, trained=trained, first_reply=first)
