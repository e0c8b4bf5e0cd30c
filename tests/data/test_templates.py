"""Templates are found where users have them, and what cannot be used is explained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlesft.data.jinja_sandbox import TemplateRefusal
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import BUILTIN, load_template, save_template
from paddlesft.errors import DataError
from paddlesft.models import load_tokenizer

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PADDLE = {"system": "S", "conversation": ["U{{index}}:{{user}}\n", "B:{{bot}}\n"], "query": "U{{index}}:{{query}}\n"}


def test_the_tokenizers_own_template_is_the_default(tokenizers: dict[str, Any]) -> None:
    template = load_template(tokenizers["smollm2"])
    assert template.name == "tokenizer"
    assert template.stop_tokens == ["<|im_end|>"]
    # the same text as paddlenlp's own rendering of the same template
    ours = template.render(MESSAGES[:1], add_generation_prompt=True)
    assert ours == tokenizers["smollm2"].apply_chat_template(MESSAGES[:1], tokenize=False)


def test_a_tokenizer_without_a_template_gets_plain(tokenizers: dict[str, Any]) -> None:
    assert load_template(tokenizers["gpt2"]).name == "plain"
    with pytest.raises(
        DataError, match=r"the tokenizer has no template of its own .* Name a built-in one: plain, alpaca"
    ):
        load_template(tokenizers["gpt2"], "tokenizer")


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_templates_are_shipped_and_complete(tokenizers: dict[str, Any], name: str) -> None:
    template = load_template(tokenizers["smollm2"], name)
    text = template.render(MESSAGES)
    assert template.name == name and text.index("q") < text.rindex("a")


def test_the_forms_that_models_were_trained_with(tokenizers: dict[str, Any]) -> None:
    system = [{"role": "system", "content": "s"}, *MESSAGES, {"role": "user", "content": "r"}]
    bos, eos = "<|im_start|>", "<|im_end|>"
    expected = {
        "chatml": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
                  "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n",
        "llama2": f"{bos}[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a {eos}{bos}[INST] r [/INST]",
        "llama3": f"{bos}<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user"
                  "<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
                  "<|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "chatglm": "s\n[Round 0]\n问：q\n答：a\n[Round 1]\n问：r\n答：",
        "chatglm2": "s\n\n[Round 1]\n\n问：q\n\n答：a\n\n[Round 2]\n\n问：r\n\n答：",
        "chatglm3": "<|system|> \n s<|user|> \n q<|assistant|> \n a<|user|> \n r<|assistant|> \n",
        "alpaca": f"s\n\n### Instruction:\nq\n\n### Response:\na{eos}\n\n### Instruction:\nr\n\n### Response:\n",
        "plain": f"s\nqa{eos}r",
    }  # fmt: skip
    for name, text in expected.items():
        template = load_template(tokenizers["smollm2"], name)
        assert template.render(system, add_generation_prompt=True) == text, name
    assert expected["chatml"] == load_template(tokenizers["smollm2"], "qwen").render(system, add_generation_prompt=True)


def test_files_and_directories(tokenizers: dict[str, Any], write: Callable[..., Path]) -> None:
    tok = tokenizers["smollm2"]
    jinja = write("a.jinja", "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}")
    assert load_template(tok, str(jinja)).render(MESSAGES) == "user=q;assistant=a;"
    paddle = write("d/chat_template.json", json.dumps(PADDLE))
    for spec in (paddle, paddle.parent):
        template = load_template(tok, str(spec))
        assert template.render(MESSAGES) == "SU0:q\nB:a\n"
        assert template.render([*MESSAGES, MESSAGES[0]], add_generation_prompt=True) == "SU0:q\nB:a\nU1:q\n"
    hub = write("h/chat_template.json", json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert load_template(tok, str(hub)).render(MESSAGES) == "q"


def test_chat_template_json_renders_as_paddlenlp_does(tokenizers: dict[str, Any]) -> None:
    from paddlenlp.transformers.tokenizer_utils import ChatTemplate as Upstream

    from paddlesft.data.templates import paddle_template

    ours = paddle_template("x", PADDLE, {})
    theirs = Upstream.from_dict(PADDLE)
    turns = [["q1", "a1"], ["q2", "a2"], ["q3"]]
    messages = [{"role": r, "content": c} for t in turns for r, c in zip(("user", "assistant"), t)]
    assert ours.render(messages, add_generation_prompt=True) == theirs(turns)
    with pytest.raises(TemplateRefusal, match="user and assistant turns in alternation; found user, tool"):
        ours.render([{"role": "user", "content": "q"}, {"role": "tool", "content": "t"}])


def test_errors_of_template_files(tokenizers: dict[str, Any], write: Callable[..., Path]) -> None:
    tok = tokenizers["smollm2"]
    with pytest.raises(
        DataError, match=r"found 'chatm', which is neither a file nor a built-in .*Did you mean 'chatml'"
    ):
        load_template(tok, "chatm")
    with pytest.raises(DataError, match=r"bad.jinja:2: this is no jinja template"):
        load_template(tok, str(write("bad.jinja", "ok\n{% for %}")))
    with pytest.raises(DataError, match=r"bad.json:1: not JSON"):
        load_template(tok, str(write("bad.json", "{")))
    with pytest.raises(DataError, match=r"found \['query'\]; allowed: \{\"system\""):
        load_template(tok, str(write("half.json", json.dumps({"query": "x"}))))
    broken = {**PADDLE, "query": "{{ query"}
    with pytest.raises(DataError, match=r"p.json, query:1: this is no jinja template"):
        load_template(tok, str(write("p.json", json.dumps(broken))))
    with pytest.raises(DataError, match=r"has neither chat_template.json nor chat_template.jinja"):
        load_template(tok, str(write("e/x", "").parent))


@pytest.mark.parametrize("name", [None, "plain", "alpaca", "llama2", "chat_template.json"])
def test_a_saved_template_is_what_the_directory_is_loaded_with(
    tokenizers: dict[str, Any], smollm2: Path, tmp_path: Path, write: Callable[..., Path], name: str | None
) -> None:
    spec = str(write("t/chat_template.json", json.dumps(PADDLE))) if name == "chat_template.json" else name
    template = load_template(tokenizers["smollm2"], spec)
    for file in smollm2.iterdir():
        if "token" in file.name or file.name in ("vocab.json", "merges.txt", "config.json"):
            shutil.copy(file, tmp_path / file.name)
    save_template(template, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    again = load_template(tokenizer, None, tmp_path)
    assert again.name == "tokenizer"
    assert again.fingerprint == template.fingerprint
    first, second = (Renderer(tokenizers["smollm2"], t).render_prompt(MESSAGES[:1]) for t in (template, again))
    assert first == second


def test_helpers_that_published_templates_use(tokenizers: dict[str, Any], write: Callable[..., Path]) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ tools | tojson }}{{ strftime_now('%%') }}"
    )
    template = load_template(tokenizers["smollm2"], str(write("a.jinja", source)))
    assert template.render(MESSAGES, tools=[{"d": "<é>"}]) == 'qa[{"d": "<é>"}]%'


def test_template_files_that_cannot_be_read_or_run(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizers["smollm2"]
    path = tmp_path / "a.jinja"
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(DataError, match=r"a.jinja is not UTF-8 text. Save it as UTF-8.$"):
        load_template(tokenizer, str(path))
    path.write_text("\ufeff{{ messages[0].content }}", "utf-8")
    assert load_template(tokenizer, str(path)).source.startswith("{{"), "a byte order mark is no text"
    path.write_text("{{ foo")
    with pytest.raises(DataError, match=r"a.jinja:1: this is no jinja template: [^\n]*[^.]\.$"):
        load_template(tokenizer, str(path))
    for source in ("{% for i in range(10**9) %}{% endfor %}", "{{ 1 / 0 }}", "{{ messages[7].content }}"):
        path.write_text(source)
        with pytest.raises(TemplateRefusal):
            load_template(tokenizer, str(path)).render([{"role": "user", "content": "q"}])
