"""A conversation as Gradio's chat component shows it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from paddlesft.serving.chat_page.backend import BackendError
from paddlesft.serving.chat_page.conversation import Chat, Reply, Turn
from paddlesft.serving.chat_page.preferences import Votes
from paddlesft.serving.chat_page.texts import say

Shown = dict[str, Any]

_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_IMAGE = re.compile(r"!\[")
_SIGN = re.compile(r"&(lt|amp|#33);")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_THOUGHT = re.compile(r"<think>(.*?)(</think>|\Z)", re.DOTALL)


def as_markdown(text: str) -> str:
    """Return a text so that its HTML is read, not obeyed, and no picture is fetched; code stays as it is.

    Args:
        text: what a model or a user wrote. ``as_written`` turns the result back.
    """
    return _changed_outside_code(text, lambda part: _IMAGE.sub("&#33;[", _TAG.sub("&lt;", _ENTITY.sub("&amp;", part))))


def as_written(text: str) -> str:
    """Return what ``as_markdown`` was given."""
    signs = {"lt": "<", "amp": "&", "#33": "!"}
    return _changed_outside_code(text, lambda part: _SIGN.sub(lambda mark: signs[mark[1]], part))


def _changed_outside_code(text: str, change: Callable[[str], str]) -> str:
    changed, fence = [], ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            line = _line_outside_code(line, change)
        changed.append(line)
    return "\n".join(changed)


def _line_outside_code(line: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(`+)", line)
    opened = None
    for number, part in enumerate(parts):
        if number % 2:
            if opened is None and part in parts[number + 2 :: 2]:
                opened = part
            elif part == opened:
                opened = None
        elif opened is None:
            parts[number] = change(part)
    return "".join(parts)


def shown_chat(
    chat: Chat, language: str, url: str, votes: Votes, system: str
) -> tuple[list[Shown], list[int], list[str | None]]:
    """Return a conversation as the chat component takes it.

    Args:
        chat: the conversation.
        language: of figures and errors.
        url: of the server, for errors.
        votes: thumbs.
        system: the system message, part of what votes are about.

    Returns:
        The messages; for each of them the number of its turn; the thumb of each message of the assistant.
    """
    messages: list[Shown] = []
    turns: list[int] = []
    thumbs: list[str | None] = []
    for number, turn in enumerate(chat.turns):
        shown = [_message("user", as_markdown(turn.prompt))]
        if turn.reply is not None:
            replies = _shown_reply(turn, turn.reply, language, url)
            shown += replies
            liked = votes.of(chat.messages(system, until=number), turn.reply.text)
            thumbs += [{True: "Like", False: "Dislike", None: None}[liked]] * len(replies)
        messages += shown
        turns += [number] * len(shown)
    return messages, turns, thumbs


def _shown_reply(turn: Turn, reply: Reply, language: str, url: str) -> list[Shown]:
    shown = []
    text = reply.text
    thought = _THOUGHT.match(text.lstrip())
    if thought:
        state = "done" if thought[2] or not reply.running else "pending"
        shown.append(
            {
                **_message("assistant", as_markdown(thought[1].strip()) or "…"),
                "metadata": {"title": say(language, "thinking"), "status": state},
            }
        )
        text = text.lstrip()[thought.end() :].lstrip()
    parts = []
    if text.strip() or (reply.running and not thought):
        parts.append({"type": "text", "text": as_markdown(text) if text.strip() else "…"})
    if reply.problem is not None:
        parts.append(_html("problem", problem_text(reply.problem, language, url)))
    elif not reply.running and not reply.text.strip():
        parts.append({"type": "text", "text": say(language, "empty_reply")})
    if not reply.running and (told := figures(turn, reply, language)):
        parts.append(_html("figures", told, reply.text, say(language, "copy")))
    if parts:
        shown.append({"role": "assistant", "content": parts})
    return shown


def figures(turn: Turn, reply: Reply, language: str) -> str:
    """Return the line below a reply: tokens, speed, how it ended."""
    told = []
    if reply.stopped:
        told.append(say(language, "stopped"))
    if reply.finish_reason == "length":
        told.append(say(language, "cut_by_length"))
    if reply.tokens is not None:
        about = "" if reply.counted else "≈ "
        told.append(say(language, "figure_tokens", about=about, tokens=reply.tokens))
    if reply.tokens_per_second is not None:
        told.append(say(language, "figure_speed", speed=reply.tokens_per_second))
    if reply.first_seconds is not None:
        told.append(say(language, "figure_first", seconds=reply.first_seconds))
    elif reply.stopped:
        told.append(say(language, "figure_seconds", seconds=reply.seconds))
    if reply.prompt_tokens is not None:
        told.append(say(language, "figure_prompt", tokens=reply.prompt_tokens))
    if len(turn.replies) > 1:
        number = turn.replies.index(reply) + 1
        told.append(say(language, "reply_of", number=number, count=len(turn.replies)))
    if turn.continues is not None:
        told.append(say(language, "chosen" if turn.continues == reply.text else "not_chosen"))
    return " · ".join(told)


def problem_text(problem: BackendError, language: str, url: str) -> str:
    """Return what a person is told about an error."""
    told = [say(language, problem.kind, url=url)]
    if problem.kind == "busy" and problem.wait:
        told.append(say(language, "busy_wait", wait=problem.wait))
    if problem.detail and problem.kind in ("missing", "refused", "failed", "not_ready"):
        told.append(say(language, "server_says", detail=problem.detail))
    return " ".join([*told, say(language, "try_again")])


def _message(role: str, text: str) -> Shown:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _html(kind: str, told: str, copied: str = "", copy: str = "") -> Shown:
    """Return a line of our own; with a button that copies a text as it was written, which Gradio's would not do."""
    button = ""
    if copied:
        button = (
            f' <button class="copy-reply" data-text="{html.escape(copied)}" onclick="copyReply(this)">'
            f"{html.escape(copy)}</button>"
        )
    value = f'<div class="reply-{kind}">{html.escape(told)}{button}</div>'
    return {"type": "component", "component": "html", "value": value, "constructor_args": {}, "props": {}}
