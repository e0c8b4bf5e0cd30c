"""Tool calls as text, for templates that know nothing of them."""

from __future__ import annotations

import json
from dataclasses import replace

from paddlesft.data.conversation import Message


def tool_calls_as_text(message: Message) -> Message:
    """Return the message with its tool calls written into the content.

    Each call becomes ``<tool_call>`` / JSON with name and arguments / ``</tool_call>``, the form that most open models
    with tools are trained on. Messages without calls are returned as they are.
    """
    if not message.tool_calls:
        return message
    blocks = [message.content] if message.content else []
    for call in message.tool_calls:
        function = call["function"]
        shown = {"name": function["name"], "arguments": function["arguments"]}
        blocks.append(f"<tool_call>\n{json.dumps(shown, ensure_ascii=False)}\n</tool_call>")
    return replace(message, content="\n".join(blocks), tool_calls=None)
