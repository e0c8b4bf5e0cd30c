import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddlenlp.metrics import BLEU, Rouge1, Rouge2, RougeL

from paddlesft.inference.sampling import SamplingOptions
from paddlesft.training.generation_metrics import (
    GenerationEvaluation,
    QuickRougeL,
    prompt_and_reference,
    sampling_options,
    text_metrics,
)
from tests.training.small_runs import small_config, small_dataset, small_model


@given(st.text("abcd 你好", max_size=40), st.text("abcd 你好", max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_quick_subsequence_is_paddlenlps(a: str, b: str) -> None:
    assert QuickRougeL().lcs(a, b) == RougeL().lcs(a, b)


def test_scores_are_paddlenlps_on_characters() -> None:
    replies, references = ["the cat sat", "飞桨很好 "], ["the cat sat down", "飞桨真的很好"]
    stripped = [text.strip() for text in replies]
    bleu, rouge = BLEU(n_size=4), RougeL()
    for reply, reference in zip(stripped, references):
        bleu.add_inst(reply, [reference])
        rouge.add_inst(reply, [reference])
    assert text_metrics(replies, references) == pytest.approx(
        {
            "bleu4": bleu.score(),
            "rouge1": Rouge1().score(stripped, references),
            "rouge2": Rouge2().score(stripped, references),
            "rougel": rouge.score(),
        }
    )


def test_perfect_empty_and_missing_replies() -> None:
    assert text_metrics(["same text"], ["same text"]) == pytest.approx(
        {"bleu4": 1.0, "rouge1": 1.0, "rouge2": 1.0, "rougel": 1.0}
    )
    zero = {"bleu4": 0.0, "rouge1": 0.0, "rouge2": 0.0, "rougel": 0.0}
    assert text_metrics(["", ""], ["a", "b"]) == zero and text_metrics([], []) == zero
    assert text_metrics(["a"], [""]) == pytest.approx(zero)


def test_a_row_is_split_at_its_last_reply() -> None:
    # tokens 1 2 [3 4 9] 5 6 [7 9], labels shifted by one; 9 stops
    row = {"input_ids": [1, 2, 3, 4, 9, 5, 6, 7], "labels": [-100, 3, 4, 9, -100, -100, 7, 9]}
    assert prompt_and_reference(row, [9]) == ([1, 2, 3, 4, 9, 5, 6], [7])
    assert prompt_and_reference(row, []) == ([1, 2, 3, 4, 9, 5, 6], [7, 9])
    assert prompt_and_reference({"input_ids": [1, 2], "labels": [2, 3]}, []) == ([1], [2, 3])


def test_options_come_from_the_config() -> None:
    options = sampling_options(small_config("top_k=3", "temperature=0.5", "seed=9", "max_new_tokens=17", "stop=[END]"))
    assert options == SamplingOptions(
        max_new_tokens=17, decode_strategy="sampling", top_k=3, temperature=0.5, seed=9, stop=("END",)
    )
    assert sampling_options(small_config("max_length=100", "src_length=60")).max_new_tokens == 40


class Letters:
    """A tokenizer of one letter per id."""

    eos_token_id, all_special_ids, all_special_tokens = 0, [0], []

    def decode(self, ids, **options) -> str:
        return "".join(chr(97 + i % 26) for i in ids)

    def convert_ids_to_tokens(self, ids):
        return [chr(97 + i % 26) for i in ids] if isinstance(ids, list) else chr(97 + ids % 26)


def test_replies_are_generated_scored_and_written_row_by_row(tmp_path: Path, monkeypatch) -> None:
    import paddlesft.training.generation_metrics as module
    from paddlesft.inference.generation import Generated

    written = []

    def fake(model, prompts, options, stop, pad, *, tokenizer, rows):
        written.append(len((tmp_path / "out.json").read_text().splitlines()))
        return [Generated([row], "stop", f"reply {row}", 1) for row in rows]

    monkeypatch.setattr(module, "generate", fake)
    done = []
    evaluate = GenerationEvaluation(
        Letters(), SamplingOptions(), [0], 0, 2, tmp_path / "out.json", lambda *counts: done.append(counts)
    )
    metrics = evaluate(small_model(), small_dataset(5), "eval")
    assert set(metrics) == {"eval_bleu4", "eval_rouge1", "eval_rouge2", "eval_rougel"}
    assert written == [0, 2, 4] and done == [(2, 5), (4, 5), (5, 5)]
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert [line["output"] for line in lines] == [f"reply {i}" for i in range(5)]
    assert all(line["tgt"] and line["src"] for line in lines)
