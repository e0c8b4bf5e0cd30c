"""ChatGLM and GLM read all before a reply from both sides: a row for each reply; and the rows of all of GLM's kin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddlenlp.transformers.tokenizer_utils_base import BatchEncoding

from paddlesft.config.data import DataConfig
from paddlesft.data.conversation import Conversation
from paddlesft.data.dataset import build_dataset
from paddlesft.data.problems import RowProblem
from paddlesft.data.rendering import Rendered, Renderer
from paddlesft.data.stored import rows_key
from paddlesft.data.templates import load_template
from paddlesft.data.truncation import fit
from paddlesft.models import load_tokenizer
from tests.tiny_tokenizers import KINDS

QUESTION, ANSWER, SECOND, LAST = "What is the capital of France?", "Paris.\n 你好", "And\tof  it?", "Rome it is"
GLM_KINDS = ("glm_gpt2", "glm_chinese")
CASES = [("chatglm", "chatglm"), ("chatglm", "plain"), ("glm_gpt2", "glm"), ("glm_chinese", "glm")]
each_case = pytest.mark.parametrize("case", CASES, ids="-".join)


def turns(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Renderer]:
    """(kind of tokenizer, template) -> renderer."""
    root, made = tmp_path_factory.mktemp("tokenizers"), {}

    def of(kind: str, template: str, one_reply_per_row: bool = True) -> Renderer:
        if kind not in made:
            (root / kind).mkdir()
            KINDS[kind](root / kind)
            made[kind] = load_tokenizer(root / kind)
        return Renderer(made[kind], load_template(made[kind], template), None, one_reply_per_row)

    return of


def reply_of(row: Rendered) -> list[int]:
    return [i for i, trained in zip(row.input_ids, row.trained) if trained]


@each_case
def test_every_trained_reply_is_a_row_behind_the_prompt_it_answers(
    case: tuple[str, str], renderer: Callable[..., Renderer]
) -> None:
    one = renderer(*case)
    conversation = turns(QUESTION, ANSWER, SECOND, LAST)
    rows = one.render_rows(Conversation.of(conversation))
    assert len(rows) == 2
    for row, asked, reply in zip(rows, (1, 3), (ANSWER, LAST)):
        prompt = one.render_prompt(conversation[:asked])
        assert row.first_reply == len(prompt) and row.input_ids[: len(prompt)] == prompt
        assert row.trained == [False] * len(prompt) + [True] * (len(row.input_ids) - len(prompt))
        text = one.tokenizer(reply, add_special_tokens=False)["input_ids"]
        assert reply_of(row) == [*text, row.input_ids[-1]], "the reply is encoded as a text of its own"
        assert row.input_ids[-1] in one.stop_token_ids
    with pytest.raises(RowProblem, match="2 trained replies for a model that takes one at a time"):
        one.render(Conversation.of(conversation))


@pytest.mark.parametrize("template", ["chatglm", "plain"])
def test_chatglm_prompts_are_those_of_its_tokenizer(template: str, renderer: Callable[..., Renderer]) -> None:
    one = renderer("chatglm", template)
    tokenizer = one.tokenizer
    assert one.render_prompt(turns(QUESTION)) == tokenizer(QUESTION)["input_ids"]
    assert one.render_prompt(turns(QUESTION))[-2:] == [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    history = f"[Round 0]\n问：{QUESTION}\n答：{ANSWER}\n[Round 1]\n问：{SECOND}\n答："
    if template == "chatglm":
        assert one.render_prompt(turns(QUESTION, ANSWER, SECOND)) == tokenizer(history)["input_ids"]
    assert one.stop_token_ids == [tokenizer.eos_token_id]


def test_chatglm2_prompts_are_those_of_its_tokenizer(renderer: Callable[..., Renderer]) -> None:
    one = renderer("chatglm_v2", "chatglm2", one_reply_per_row=False)
    tokenizer = one.tokenizer
    told = tokenizer.build_prompt(SECOND, history=[(QUESTION, ANSWER)])
    assert one.render_prompt(turns(QUESTION)) == tokenizer(tokenizer.build_prompt(QUESTION))["input_ids"]
    ids = one.render_prompt(turns(QUESTION, ANSWER, SECOND))
    ids.remove(tokenizer.eos_token_id)  # what ends the first reply in training
    assert ids == tokenizer(told)["input_ids"]


def test_chatglm3_rows_are_those_of_the_published_chat_format(renderer: Callable[..., Renderer]) -> None:
    """ChatGLM3's ``build_chat_input``: a role's token, a line break and the message, encoded one by one."""
    one = renderer("chatglm_v2", "chatglm3", one_reply_per_row=False)
    pieces = one.tokenizer.tokenizer
    expected = [pieces.special_tokens["[gMASK]"], pieces.special_tokens["sop"]]
    for message in turns(QUESTION, LAST):
        role = pieces.special_tokens[f"<|{message['role']}|>"]
        expected += [role, *pieces.encode("\n"), *pieces.encode(message["content"])]
    row = one.render(Conversation.of(turns(QUESTION, LAST)))
    assert row.input_ids == [*expected, pieces.eos_id]
    assert reply_of(row) == [*pieces.encode(LAST), pieces.eos_id]


@pytest.mark.parametrize("kind", GLM_KINDS)
def test_glm_rows_are_those_of_its_tokenizer(kind: str, renderer: Callable[..., Renderer]) -> None:
    one = renderer(kind, "glm")
    tokenizer = one.tokenizer
    prompt = np.array([tokenizer(QUESTION + "[gMASK]")["input_ids"]])
    encoding = BatchEncoding({"input_ids": prompt, "attention_mask": np.ones_like(prompt)})
    theirs = tokenizer.build_inputs_for_generation(encoding, targets=[LAST], max_gen_length=64)
    row = one.render(Conversation.of(turns(QUESTION, LAST)))
    assert row.input_ids[:-1] == theirs["input_ids"][0].tolist()
    labels, trained = theirs["label_ids"][0].tolist(), theirs["loss_mask"][0].astype(bool)
    assert reply_of(row) == [label for label, wanted in zip(labels, trained) if wanted]
    assert row.input_ids[-1] == tokenizer.eop_token_id in one.stop_token_ids


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "plain"], ids="-".join)
def test_marks_spelled_in_a_message_stay_text(case: tuple[str, str], renderer: Callable[..., Renderer]) -> None:
    one = renderer(*case)
    marks = "[gMASK] <sop> <eop> <|startofpiece|> <|endofpiece|> [CLS]"
    clean, spelled = (one.render(Conversation.of(turns(text, text))).input_ids for text in ("a", marks))
    special = set(one.encoder.special_ids.values()) - {one.tokenizer.unk_token_id}
    assert [i for i in spelled if i in special] == [i for i in clean if i in special]


@pytest.mark.parametrize(("case", "opening"), [(("glm_gpt2", "glm"), ["[CLS]"]), (("chatglm", "chatglm"), []),
                                               (("chatglm_v2", "chatglm2"), ["[gMASK]", "sop"])])  # fmt: skip
def test_a_prompt_that_is_cut_keeps_its_marks(
    case: tuple[str, str], opening: list[str], renderer: Callable[..., Renderer]
) -> None:
    one = renderer(*case, one_reply_per_row=case[0] != "chatglm_v2")
    row = one.render(Conversation.of(turns(QUESTION * 9, LAST)))
    cut = fit(row, one, "truncate_left_prompt", 20, 40).row
    first = [one.tokenizer.convert_tokens_to_ids(token) for token in opening]
    assert cut is not None and cut.first_reply == 20
    assert cut.input_ids == [*first, *row.input_ids[row.first_reply - 20 + len(first) : row.first_reply + 20]]


def test_the_report_counts_what_is_trained(renderer: Callable[..., Renderer], tmp_path: Path) -> None:
    one = renderer("chatglm", "chatglm")
    data = tmp_path / "train.json"
    silent = turns(QUESTION, ANSWER, SECOND, LAST)
    silent[1]["train"] = False
    rows = [turns(QUESTION, ANSWER, SECOND, LAST), turns(QUESTION, ANSWER), silent]
    data.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    config = DataConfig(train_dataset_path=str(data), max_length=512, src_length=256)
    dataset, report = build_dataset(config, one, "train")
    assert (report.rows_read, report.rows, len(dataset), report.split_conversations) == (3, 4, 4, 1)
    replies = [one.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (ANSWER, LAST)]
    assert report.trained_tokens == 2 * (len(replies[0]) + 1) + 2 * (len(replies[1]) + 1)
    assert report.tokens == sum(dataset.lengths) + 4
    assert dataset[1]["input_ids"] == dataset[3]["input_ids"], "an earlier reply is context, trained or not"
    whole = Renderer(one.tokenizer, one.template)
    assert rows_key(config, one, [], "auto", 1) != rows_key(config, whole, [], "auto", 1)
