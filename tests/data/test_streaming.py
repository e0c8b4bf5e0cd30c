"""Streamed conversations are those that reading gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from paddlesft.data.conversation import Conversation
from paddlesft.data.problems import Problem
from paddlesft.data.reading import read_conversations
from paddlesft.data.sources import DataSource
from paddlesft.data.streaming import stream_conversations

CALLS = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}],
         "tools": [{"name": "f"}], "label": [1]}  # fmt: skip


def test_the_same_conversations_and_problems(write: Callable[..., Path]) -> None:
    path = write("a.jsonl", [{"messages": CALLS["messages"]}, CALLS, {"messages": []}, CALLS])
    result = read_conversations([path])
    streamed = list(stream_conversations([DataSource((path,))]))
    assert [entry for entry in streamed if isinstance(entry, Conversation)] == result.conversations
    assert [entry for entry in streamed if isinstance(entry, Problem)] == result.problems
    assert isinstance(streamed[2], Problem) and streamed[2].source.line == 3
    assert len(list(stream_conversations([DataSource((path,))], limit=2))) == 2


def test_sources_are_mixed(write: Callable[..., Path]) -> None:
    first = write("a.jsonl", [{"src": "first", "tgt": "a"}] * 40)
    second = write("b.jsonl", [{"question": "second", "answer": "a"}] * 40)

    def counts(strategy: str, shares: tuple[float | None, float | None] = (None, None)) -> Counter[str]:
        sources = [DataSource((first,), shares[0]), DataSource((second,), shares[1])]
        rows = stream_conversations(sources, mix_strategy=strategy, seed=1)
        return Counter(row.messages[0].content for row in rows)

    assert counts("concat") == {"first": 40, "second": 40}
    assert counts("interleave_under", (0.8, 0.2))["first"] > 2 * counts("interleave_under", (0.8, 0.2))["second"]
    over = counts("interleave_over", (0.8, 0.2))
    assert over["second"] >= 40 and over["first"] > 80, "the larger share repeats until the smaller is used up"
