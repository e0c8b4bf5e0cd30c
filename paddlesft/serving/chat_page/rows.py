"""Conversations as rows of a training file, out and in."""

from __future__ import annotations

from pathlib import Path

from paddlesft.data.reading import read_conversations
from paddlesft.errors import DataError
from paddlesft.serving.chat_page.conversation import Chat, Reply, Turn
from paddlesft.serving.chat_page.preferences import line


def row_of(chat: Chat, system: str) -> str | None:
    """Return a conversation as one line of a training file, or None when nothing was answered.

    Args:
        chat: the conversation; a last message without a reply is left out.
        system: its system message; empty: none.
    """
    if not any(turn.answer is not None for turn in chat.turns):
        return None
    return line({"messages": chat.messages(system)}) + "\n"


def read_row(path: str | Path) -> tuple[Chat, str, bool]:
    """Read the first conversation of a file, in any of the formats that training reads.

    Args:
        path: the file.

    Returns:
        The conversation, its system message ("" without one), and whether the file holds more rows.

    Raises:
        DataError: the file holds none, or one that the page cannot hold.
    """
    path = Path(path)
    try:
        read = read_conversations([path], limit=2, reply_needed=False)
        if read.problems:
            raise DataError(str(read.problems[0]))
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from None
    conversation = read.conversations[0]
    messages = list(conversation.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    turns: list[Turn] = []
    for number, message in enumerate(messages, len(conversation.messages) - len(messages)):
        place = f"{path.name}:{conversation.source.line}  field 'messages[{number}]': found "
        if message.role == "user" and (not turns or turns[-1].replies):
            turns.append(Turn(message.content))
        elif message.role == "assistant" and not message.tool_calls and turns and not turns[-1].replies:
            turns[-1].replies.append(Reply(text=message.content, running=False))
        elif message.role == "tool" or message.tool_calls:
            raise DataError(f"{place}a tool call; allowed: messages of system, user and assistant")
        else:
            raise DataError(f"{place}the role {message.role!r}; allowed: user and assistant by turns, user first")
    if not turns:
        raise DataError(f"{path.name}:{conversation.source.line}  found no message of the user; allowed: at least one")
    return Chat(turns), system, read.rows > 1
