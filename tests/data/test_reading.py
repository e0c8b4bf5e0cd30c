"""Every format becomes the same conversations; every bad row is listed with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.data.containers import Row
from paddlesft.data.conversation import Conversation, Source
from paddlesft.data.formats.registry import FORMATS
from paddlesft.data.problems import Problem, listing, unread_fields
from paddlesft.data.reading import _parsed, read_conversations
from paddlesft.errors import DataError

Write = Callable[..., Path]


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def only(write: Write, row: dict[str, Any], **options: Any) -> tuple[str, Conversation]:
    result = read_conversations([write("rows.jsonl", [row])], **options)
    (conversation,) = result.usable()
    return result.format, conversation


QA = [("user", "q"), ("assistant", "a")]
CASES = [
    ("paddlenlp", {"src": "q", "tgt": "a"}, QA),
    ("paddlenlp", {"src": ["q"], "tgt": ["a"]}, QA),
    ("paddlenlp", {"src": ["q", "q2"], "tgt": ["a", "a2"], "context": {"system": "s"}},
     [("system", "s"), *QA, ("user", "q2"), ("assistant", "a2")]),
    ("erniekit", {"src": ["q"], "tgt": ["a"], "system": "s"}, [("system", "s"), *QA]),
    ("erniekit", {"src": ["s", "q"], "tgt": ["unused", "a"], "is_system": 1}, [("system", "s"), *QA]),
    ("erniekit", {"src": ["s", "q"], "tgt": ["a"], "is_system": 1}, [("system", "s"), *QA]),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, QA),
    ("messages", {"messages": [{"role": "developer", "content": "s"},
                               {"role": "user", "content": [{"type": "text", "text": "q"}]},
                               {"role": "assistant", "content": "a"}]}, [("system", "s"), *QA]),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "function_call", "content": '{"name": "f"}'},
                               {"role": "observation", "content": {"t": 3}}, {"role": "assistant", "content": "a"}]},
     [("user", "q"), ("assistant", ""), ("tool", '{"t": 3}'), ("assistant", "a")]),
    ("alpaca", {"instruction": "q", "output": "a"}, QA),
    ("alpaca", {"instruction": "q", "input": "more", "output": "a", "system": "s", "history": [["q0", "a0"]]},
     [("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q\nmore"), ("assistant", "a")]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
     [("system", "s"), *QA]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"},
                                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                                    {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"}]},
     [("user", "q"), ("assistant", ""), ("tool", "3"), ("assistant", "a")]),
    ("sharegpt", {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, QA),
    *(("columns", {left: "q", right: "a", "id": 7}, QA) for left, right in [
        ("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("query", "response"),
        ("input", "output"), ("source", "target"), ("instruction", "response")]),
    ("columns", {"question": "6*7?", "answer": 42}, [("user", "6*7?"), ("assistant", "42")]),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "expected"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_formats_are_recognised_and_read(
    write: Write, format: str, row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    for declared in ("auto", format):
        name, conversation = only(write, row, format=declared)
        assert (name, turns(conversation)) == (format, expected)
        assert conversation.source.line == 1


def test_tools_and_calls_are_kept(write: Write) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rows = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3"}, {"role": "assistant", "content": "a"}]  # fmt: skip
    for form in (tools, json.dumps(tools)):
        _, conversation = only(write, {"messages": rows, "tools": form})
        assert conversation.tools == tools
        assert conversation.messages[1].tool_calls == [
            {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        ]


def test_label_marks_which_replies_are_trained(write: Write) -> None:
    messages = [{"role": r, "content": c} for r, c in [("user", "q"), ("assistant", "a")] * 2]
    _, conversation = only(write, {"messages": messages, "label": [0, 1]})
    assert [m.trained for m in conversation.messages] == [False, False, False, True]
    _, conversation = only(write, {"src": ["q", "q"], "tgt": ["a", "a"], "label": [1, 0]})
    assert [m.trained for m in conversation.messages] == [False, True, False, False]
    messages[1]["weight"] = 0
    _, conversation = only(write, {"messages": messages})
    assert [m.trained for m in conversation.messages] == [False, False, False, True]


def test_parquet_rows_with_nested_messages(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]}]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (conversation,) = read_conversations([path]).usable()
    assert turns(conversation) == QA


def test_a_column_map_names_the_columns(write: Write) -> None:
    row = {"title": "q", "body": "a", "note": "more", "persona": "s"}
    options = {"column_map": {"prompt": "title", "response": "body", "input": "note", "system": "persona"}}
    name, conversation = only(write, row, **options)
    assert (name, turns(conversation)) == ("columns", [("system", "s"), ("user", "q\nmore"), ("assistant", "a")])
    with pytest.raises(DataError, match=r"column_map: found the part 'questoin' .*allowed parts: user, question"):
        read_conversations([write("a.jsonl", [row])], column_map={"questoin": "title"})
    with pytest.raises(DataError, match=r"names no column for the answer; add \"answer\": \"<your column>\""):
        read_conversations([write("a.jsonl", [row])], column_map={"question": "title"})


def test_rows_to_answer_need_no_reply(write: Write) -> None:
    for row in ({"src": "q"}, {"instruction": "q", "input": ""}, {"question": "q", "answer": None},
                {"messages": [{"role": "user", "content": "q"}]}):  # fmt: skip
        _, conversation = only(write, row, reply_needed=False)
        assert turns(conversation) == [("user", "q")]


USER_AND_REPLY = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PROBLEMS = [
    ("messages", {"messages": []}, "field 'messages': found an empty list; allowed: a list of messages"),
    ("messages", {"messages": "hi"}, "field 'messages': found the text \"hi\"; allowed: a list of messages"),
    ("messages", {"messages": [{"role": "bot", "content": "x"}]},
     "field 'messages[0].role': found \"bot\"; allowed: one of system, developer, user, assistant, tool"),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
     "field 'messages[1].content': found an empty string; allowed: a string that is not empty"),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "s"}]},
     "field 'messages[1].role': found \"system\"; allowed: the system message stands first or not at all"),
    ("messages", {"messages": [{"role": "user", "content": "q"}]},
     "field 'messages[0]': found the role 'user' as the last; allowed: a conversation that ends with a reply"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "found \"image_url\"; allowed: parts of type text; images, video and audio are not supported"),
    ("messages", {"messages": [{"role": "user", "content": {"a": 1}}]},
     "field 'messages[0].content': found the object {\"a\": 1}; allowed: a string, or a list of text parts"),
    ("messages", {"messages": ["hi"]}, "field 'messages[0]': found the text \"hi\"; allowed: an object with role and"),
    ("messages", {"label": [1, 1], "messages": USER_AND_REPLY},
     "field 'label': found 2 entries [1, 1]; allowed: 1: one 0 or 1 for each reply"),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": [2]},
     "field 'label[0]': found 2; allowed: 0 or 1"),
    ("messages", {"messages": [{"role": "user", "content": "q", "train": True}]},
     "field 'messages[0].train': found 1; allowed: 0: only the assistant's messages are trained"),
    ("messages", {"messages": [{"role": "tool_calls", "content": "not json"}]},
     "field 'messages[0].content': found \"not json\"; allowed: an object such as"),
    ("messages", {"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}]},
     "found calls in a message of role 'user'; allowed: calls in assistant messages"),
    ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "x"},
     "field 'tools': found the text \"x\"; allowed: a list of objects, or that list as JSON text"),
    ("sharegpt", {"conversations": [{"from": "alien", "value": "q"}]},
     "field 'conversations[0].from': found \"alien\"; allowed: one of system, human"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}]}, "allowed: a conversation that ends with"),
    ("paddlenlp", {"src": ["q", "q2"], "tgt": ["a"]}, "field 'tgt': found 1 entry beside 2 of src; allowed: as many"),
    ("paddlenlp", {"src": "q"}, "field 'tgt': found no such field (the row has 'src'); allowed: a string"),
    ("paddlenlp", {"src": "q", "tgt": None}, "field 'tgt': found null; allowed: a string that is not empty"),
    ("paddlenlp", {"src": "q", "tgt": {"a": 1}}, "field 'tgt': found the object {\"a\": 1}; allowed: a string"),
    ("paddlenlp", {"src": "q", "tgt": "a", "context": "s"}, "field 'context': found the text \"s\"; allowed: an"),
    ("erniekit", {"src": ["q"], "tgt": ["a"], "system": "s", "is_system": 1},
     "field 'is_system': found 1 beside a system text; allowed: one of the two"),
    ("erniekit", {"src": ["s"], "tgt": ["a"], "is_system": 1}, "field 'src': found no turn after the system text"),
    ("alpaca", {"instruction": "", "output": "a"}, "field 'instruction': found an empty string; allowed: a string"),
    ("alpaca", {"instruction": "q", "output": "  "}, "field 'output': found only white space; allowed: a string"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]},
     "field 'history[0]': found [\"q\"]; allowed: a pair [question, answer]"),
    ("columns", {"question": "q", "answer": ["a"]}, "field 'answer': found the list [\"a\"]; allowed: a string"),
    ("columns", {"question": "q"}, "field 'answer': found no such field (the row has 'question')"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "message"), PROBLEMS, ids=[f"{i}-{p[0]}" for i, p in enumerate(PROBLEMS)])
def test_bad_rows_say_what_was_found_and_what_is_allowed(
    write: Write, format: str, row: dict[str, Any], message: str
) -> None:
    path = write("rows.jsonl", [row])
    result = read_conversations([path], format=format)
    assert message in str(result.problems[0])
    assert str(result.problems[0]).startswith(f"{path}:1  ")
    assert not result.conversations


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(
        ["user", "assistant", "human", "gpt", "system", "tool", "function_call", "[]", '{"name": 1}', "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "type", "text", "name", "tool_calls", "function"]),
        inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_row_whatever_it_holds_brings_a_reader_down(format: str, data: st.DataObject) -> None:
    keys = [*FORMATS[format].KEYS, "system", "label", "tools", "history", "context", "is_system"]
    row = data.draw(st.dictionaries(st.sampled_from(keys), ANY_JSON, max_size=4))
    for reply_needed in (True, False):
        entry = _parsed(FORMATS[format], Row(Source("a.jsonl", 1), row), reply_needed, {})
        assert isinstance(entry, Conversation | Problem)
        if isinstance(entry, Conversation):
            assert all(isinstance(message.content, str) for message in entry.messages)


def test_half_characters_and_missing_numbers_are_problems(write: Write) -> None:
    path = write("a.jsonl", '{"src": "a\\ud83d", "tgt": "b"}\n{"src": "a", "tgt": NaN}\n{"src": "a", "tgt": 1.5}\n')
    told = [str(problem).replace(str(path), path.name) for problem in read_conversations([path]).problems]
    assert told == [
        "a.jsonl:1  found half a character (\\ud83d) in a text; allowed: complete Unicode characters",
        "a.jsonl:2  field 'tgt': found the number NaN; allowed: a string",
    ]


def test_bad_rows_of_an_array_in_one_line_are_counted_and_numbered(write: Write) -> None:
    path = write("a.json", '[1, {"src": "a", "tgt": "b"}, {"src": "a"}]')
    with pytest.raises(DataError) as raised:
        read_conversations([path]).usable()
    lines = str(raised.value).replace(str(path), path.name).splitlines()
    assert lines[0] == "2 rows of 3 cannot be used:"
    assert lines[1] == "  a.json:1 (row 1)  found the number 1; allowed: an object with named fields"
    assert lines[2].startswith("  a.json:1 (row 3)  field 'tgt': found no such field")


def test_all_bad_rows_are_listed_twenty_in_full(write: Write) -> None:
    good, bad = {"question": "q", "answer": "a"}, {"question": "q", "answer": ""}
    path = write("rows.jsonl", [good] + [bad] * 25 + [{"question": "", "answer": "a"}, good])
    result = read_conversations([path])
    assert (result.rows, len(result.conversations), len(result.problems)) == (28, 2, 26)
    with pytest.raises(DataError) as raised:
        result.usable()
    assert raised.value.exit_code == 2
    text = str(raised.value).replace(str(path), "rows.jsonl")
    lines = text.splitlines()
    assert lines[0] == "26 rows of 28 cannot be used:"
    bad_line = "  rows.jsonl:2  field 'answer': found an empty string; allowed: a string that is not empty"
    assert lines[1] == bad_line
    assert len(lines) == 23
    assert lines[21] == "  … and 6 more: 5 in field 'answer', 1 in field 'question'"
    assert lines[22].startswith("Nothing was written. Correct or remove these rows")
    assert listing(result.problems[:1], 28).startswith("1 row of 28 cannot be used:")


DETECTION = [
    ([{"foo": 1, "bar": 2}], "found a row with the keys 'foo', 'bar', which is no format .* nearest format is columns"),
    ([{"instruction": "q", "reply": "a"}], "nearest format is alpaca: .*column_map="),
    ([{"data": [{"src": "q", "tgt": "a"}]}], "The rows seem to stand inside 'data': save that list as the file's"),
    ([{}], "found a row with the keys none, which is no format"),
    ([{"text": "once upon a time"}], "Text without a question and a reply is pretraining data"),
    ([{"conversations": [], "chosen": {}, "rejected": {}}], "preference pairs. Supervised fine-tuning needs one reply"),
    ([{"src": "q", "tgt": "a"}, {"question": "q", "answer": "a"}],
     r"mixes formats: paddlenlp at .*rows.jsonl:1 with the keys 'src', 'tgt'; columns at .*rows.jsonl:2"),
    ([{"src": "q", "tgt": "a", "messages": []}],
     r"fits more than one format \(messages, paddlenlp\); its keys are 'src', 'tgt', 'messages'. Declare"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), DETECTION)
def test_rows_of_no_one_format_are_explained(write: Write, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_conversations([write("rows.jsonl", rows)])


def test_unknown_format_and_empty_file(write: Write) -> None:
    with pytest.raises(DataError, match="Unknown data format 'alpca'; allowed: auto, messages, sharegpt, paddlenlp"):
        read_conversations([write("rows.jsonl", [{"a": 1}])], format="alpca")
    with pytest.raises(DataError, match="found no rows; allowed: at least one row"):
        read_conversations([write("empty.jsonl", "")]).usable()


def test_several_files_of_several_formats_and_a_limit(write: Write) -> None:
    paths = [
        write("a.jsonl", [{"src": "q", "tgt": "a"}] * 3),
        write("b.json", json.dumps([{"question": "q", "answer": "a"}])),
    ]
    result = read_conversations(paths)
    assert (result.format, result.rows, result.files) == ("paddlenlp + columns", 4, [str(path) for path in paths])
    limited = read_conversations(paths, limit=2)
    assert (len(limited.usable()), limited.rows) == (2, 2)


def test_gsm8k_reads_whole(gsm8k_dir: Path) -> None:
    result = read_conversations([gsm8k_dir / "train.jsonl"])
    assert (result.format, len(result.usable())) == ("columns", 7473)
    assert result.conversations[7472].source.line == 7473


def test_fields_that_are_not_read_are_named(write: Write) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "lable": [1]}
    result = read_conversations([write("a.jsonl", [row, {**row, "tools": None, "id": 7}])])
    assert [conversation.unread for conversation in result.conversations] == [("lable",), ("lable", "id")]
    assert unread_fields({"lable": 2, "id": 1}) == ["Fields that are not read: 'lable' (2 rows), 'id' (1 row)."]
    assert unread_fields({str(i): 1 for i in range(9)}, most=1) == ["Fields that are not read: '0' (1 row), 8 more."]
    assert unread_fields({}) == []
    table = [write("b.jsonl", [{"question": "q", "answer": "a", "input": "i", "system": "s"}])]
    assert read_conversations(table).conversations[0].unread == ("input",)
    mapped = read_conversations(table, column_map={"question": "input", "answer": "answer"})
    assert mapped.conversations[0].unread == ("question", "system")
