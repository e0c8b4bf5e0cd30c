"""Messages, rounds and places."""

from __future__ import annotations

from paddlesft.data.conversation import Conversation, Message, Source, tool_call
from paddlesft.data.tool_text import tool_calls_as_text


def roles(conversation: Conversation | None) -> str:
    return "" if conversation is None else "".join(message.role[0] for message in conversation.messages)


def made(letters: str) -> Conversation:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation([Message(names[letter], letter) for letter in letters])


def test_rounds_end_where_the_user_speaks_again() -> None:
    assert roles(made("suaua").without_first_round()) == "sua"
    assert roles(made("uatauua").without_first_round()) == "uua", "calls, tool answers and replies are one round"
    assert roles(made("sua").without_first_round()) == roles(made("a").without_first_round()) == ""


def test_only_assistant_messages_are_trained() -> None:
    assert [Message(role, "x", True).trained for role in ("system", "user", "assistant", "tool")] == [
        False, False, True, False]  # fmt: skip
    assert Message("assistant", "x").trained and not Message("assistant", "x", False).trained


def test_a_system_message_is_added_only_where_there_is_none() -> None:
    assert roles(made("ua").with_system("x")) == "sua"
    assert made("sua").with_system("x").messages[0].content == "s"
    assert roles(made("ua").with_system(None)) == "ua"


def test_places_of_rows() -> None:
    assert str(Source("a.jsonl", 3)) == "a.jsonl:3"
    assert str(Source("a.parquet", 3)) == "a.parquet:row 3"


def test_dicts_of_chat_front_ends() -> None:
    conversation = Conversation.of([{"role": "user", "content": None, "refusal": None}, Message("assistant", "a")])
    assert conversation.messages == [Message("user", ""), Message("assistant", "a")]


def test_tool_calls() -> None:
    assert tool_call("f", '{"x": 1}')["function"] == {"name": "f", "arguments": {"x": 1}}
    assert tool_call("f", "free text")["function"]["arguments"] == "free text"
    assert tool_call("f", None)["function"]["arguments"] == {}
    message = Message("assistant", "Let me look.", tool_calls=[tool_call("f", {"x": "é"}), tool_call("g", None)])
    assert tool_calls_as_text(message).content == (
        'Let me look.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    assert message.for_template()["tool_calls"][1]["function"]["name"] == "g"
    assert tool_calls_as_text(Message("user", "x")) == Message("user", "x")
