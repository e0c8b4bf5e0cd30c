"""The same messages have the same prompt ids in training and at the server: every template, every kind of tokenizer.

Training is a file of rows read as a run reads it; before each reply that it trains stand the ids that the model learns
to answer. The server is asked over HTTP's objects for that reply, and must hand the engine exactly these ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from paddlesft.data.problems import RowProblem
from paddlesft.data.reading import read_conversations
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import BUILTIN, load_template
from paddlesft.inference.engine_requests import GenerationRequest, QueueFull
from paddlesft.inference.loading import load_renderer, stop_tokens
from paddlesft.models import load_tokenizer, write_provenance
from paddlesft.models.families import family_of
from paddlesft.models.load import load_config
from paddlesft.serving.app import create_app
from paddlesft.serving.served_models import ServedModel, ServedModels
from paddlesft.serving.service import Service
from paddlesft.serving.settings import ServingSettings
from tests.tiny_families import FAMILY_FIXTURES

OWN = "own"  # what the family's directory brings, or its default
BUILTIN_ON = ("qwen2", "llama", "gpt")  # a fast tokenizer with ChatML tokens, SentencePiece, a slow byte-level one
CASES = [(family, OWN) for family in FAMILY_FIXTURES] + [(f, name) for f in BUILTIN_ON for name in BUILTIN]

CALL = {"name": "weather", "arguments": '{"city": "Paris", "days": [1, 2]}'}
WEATHER = {  # keys in no canonical order, and one that says nothing
    "function": {
        "parameters": {
            "required": ["city"], "type": "object", "properties": {"city": {"default": None, "type": "string"}},
        },
        "description": "Weather of a city",
        "name": "weather",
    },
    "type": "function",
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "turns": {
        "messages": [
            {"role": "system", "content": "Be brief. 请简短。"},
            {"role": "user", "content": "  What is 1 + 2?\n"},
            {"role": "assistant", "content": "3. 三。"},
            {"role": "user", "content": "And <|im_end|> or </s>?\n\nWhy"},
            {"role": "assistant", "content": " Because. "},
            {"role": "user", "content": "你好 🙂"},
            {"role": "assistant", "content": "Hello!"},
        ]
    },
    "question": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    "calls": {
        "messages": [
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"sky": "blue"}'},
            {"role": "assistant", "content": "Blue."},
        ]
    },
}
ROWS["tools"] = {**ROWS["calls"], "tools": [WEATHER]}


class Prompts:
    """Stands for the engine: notes prompts and takes none."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.prompts: list[list[int]] = []

    def refuse_when_full(self) -> None:
        """There is always room."""

    def submit(self, request: GenerationRequest) -> None:
        self.prompts.append(list(request.prompt))
        raise QueueFull(0, 1)


class Server:
    """One model behind the application; returns the prompts that requests become."""

    def __init__(self, config: Any, renderer: Renderer, directory: Path) -> None:
        served = ServedModel("m", None, renderer, renderer.tokenizer, stop_tokens(renderer, directory), None)
        self.engine, settings = Prompts(config), ServingSettings(src_length=10**6)
        self.client = create_app(Service(self.engine, ServedModels([served]), settings), settings).test_client()

    def ask(self, path: str, **body: Any) -> list[int] | None:
        """The prompt of a request; None where it is refused."""
        answer = self.client.post(path, json=body)
        assert answer.status_code in (400, 429), answer.get_data()
        return self.engine.prompts[-1] if answer.status_code == 429 else None


def trained_prompts(renderer: Renderer, path: Path) -> dict[int, list[int]]:
    """What stands before each reply that a file's only row trains, by the number of the reply's message."""
    (conversation,) = read_conversations([path]).usable()
    added = len(conversation.with_system(renderer.system_prompt).messages) - len(conversation.messages)
    found = {}
    for row in renderer.render_rows(conversation):
        starts = [i for i, flag in enumerate(row.trained) if flag and not row.trained[i - 1]]
        replies = [i for i, message in enumerate(row.conversation.messages) if message.trained]
        assert len(starts) == len(replies)
        found |= {number - added: row.input_ids[:start] for number, start in zip(replies, starts)}
    return found


def history_of(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A conversation in the words of PaddleNLP's server."""
    return [{"role": one["role"], "utterance": one["content"]} for one in messages]


@pytest.mark.parametrize(("family", "template"), CASES, ids=str)
def test_the_server_asks_what_training_taught(
    family: str, template: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_family(family)
    config, tokenizer = load_config(base), load_tokenizer(base)
    asked = None if template == OWN else template
    row = family_of(config)
    compared, knows_tools = 0, False
    for system in (None, "You answer in one word."):
        trainer = Renderer(
            tokenizer, load_template(tokenizer, asked, base, row.default_template), system, row.one_reply_per_row
        )
        adapter = tmp_path / f"adapter-{bool(system)}"
        adapter.mkdir()
        write_provenance(adapter, chat_template=asked, system_prompt=system)
        server = Server(config, load_renderer(config, base, adapter), base)
        knows_tools = trainer.template.mentions("tools")
        for name, content in ROWS.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
            messages, tools = content["messages"], content.get("tools")
            if tools and not knows_tools:
                assert server.ask("/v1/chat/completions", messages=messages[:1], tools=tools) is None
                continue
            try:
                wanted = trained_prompts(trainer, path)
            except RowProblem:  # the template does not take the whole conversation: it does not take its longest part
                assert server.ask("/v1/chat/completions", messages=messages[:-1]) is None
                continue
            for number, ids in wanted.items():
                before = messages[:number]
                parts = [
                    {**one, "content": [{"type": "text", "text": one["content"]}]} if one["role"] == "user" else one
                    for one in before
                ]
                assert server.ask("/v1/chat/completions", messages=before, tools=tools) == ids
                assert server.ask("/v1/chat/completions", messages=parts, tools=tools) == ids
                if not tools and all(one["role"] != "tool" for one in before):
                    history = history_of(before)
                    assert server.ask("/api/chat", context=history.pop()["utterance"], history=history) == ids
                compared += 1
    assert compared >= 2 * 3
    assert knows_tools == (template == "qwen")
