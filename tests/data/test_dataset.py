"""From a configuration to rows and a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.config.data import DataConfig
from paddlesft.data.collate import IGNORED
from paddlesft.data.dataset import SFTDataset, build_dataset
from paddlesft.data.rendering import Renderer
from paddlesft.data.report import Span, first_sample_view, shortened, view_as_text
from paddlesft.data.templates import load_template
from paddlesft.errors import DataError

Write = Callable[..., Path]
ROWS = [{"question": f"What is {i} plus {i}?", "answer": "It is " + "very " * (i % 7) + f"{2 * i}."} for i in range(40)]


def config(path: Path, **options: Any) -> DataConfig:
    return DataConfig(train_dataset_path=[str(path)], **options)


def test_rows_are_shifted_and_only_replies_have_labels(write: Write, renderer: Renderer) -> None:
    dataset, report = build_dataset(config(write("a.jsonl", ROWS)), renderer, "train")
    row = dataset[3]
    whole = [*row["input_ids"], row["labels"][-1]]
    prompt = renderer.render_prompt([{"role": "user", "content": ROWS[3]["question"]}])
    assert whole[: len(prompt)] == prompt
    assert row["labels"][: len(prompt) - 1] == [IGNORED] * (len(prompt) - 1)
    assert row["labels"][len(prompt) - 1 :] == whole[len(prompt) :]
    assert renderer.encoder.decode(row["labels"][len(prompt) - 1 :]) == ROWS[3]["answer"] + "<|im_end|>"
    assert dataset.num_trained_tokens(3) == sum(label != IGNORED for label in row["labels"])
    assert dataset.length(3) == len(row["input_ids"]) == len(row["labels"])
    assert (len(dataset), report.rows, report.rows_read, report.packs) == (40, 40, 40, None)
    assert report.trained_tokens == sum(dataset.num_trained_tokens(i) for i in range(40))
    assert report.tokens == sum(dataset.length(i) + 1 for i in range(40))
    assert dataset[-1] == dataset[39]
    with pytest.raises(IndexError):
        dataset[40]


@pytest.mark.parametrize("greedy", [False, True])
def test_packing_keeps_every_row_whole(write: Write, renderer: Renderer, greedy: bool) -> None:
    path = write("a.jsonl", ROWS)
    loose, _ = build_dataset(config(path), renderer, "train")
    packed, report = build_dataset(config(path, packing=True, greedy_packing=greedy, max_length=200), renderer, "train")
    assert report.packs == len(packed) < len(loose)
    segments = []
    for i in range(len(packed)):
        row, start = packed[i], 0
        assert packed.length(i) == len(row["input_ids"]) == sum(row["segment_lengths"]) <= 200
        assert packed.num_trained_tokens(i) == sum(label != IGNORED for label in row["labels"])
        for size in row["segment_lengths"]:
            segments.append((row["input_ids"][start : start + size], row["labels"][start : start + size]))
            assert row["position_ids"][start : start + size] == list(range(size))
            start += size
    rows = [(loose[i]["input_ids"], loose[i]["labels"]) for i in range(len(loose))]
    assert sorted(segments) == sorted(rows)
    if not greedy:
        assert segments == rows


def test_the_report_counts_what_truncation_did(write: Write, renderer: Renderer) -> None:
    long = {"question": "Say a lot.", "answer": "word " * 300}
    path = write("a.jsonl", [*ROWS[:3], long])
    whole, _ = build_dataset(config(path), renderer, "train")
    lost = whole.length(3) + 1 - 128
    _, report = build_dataset(config(path, max_length=128), renderer, "train")
    assert (report.truncated_rows, report.dropped_rows, report.reply_tokens_lost) == (1, 0, lost)
    dropped, report = build_dataset(config(path, max_length=128, truncation="drop"), renderer, "train")
    assert (len(dropped), report.rows_read, report.rows, report.dropped_rows) == (3, 4, 3, 1)
    with pytest.raises(
        DataError, match=r"1 row of 4 cannot be used:\n  .*a.jsonl:4  found \d+ tokens; allowed: at most"
    ):
        build_dataset(config(path, max_length=128, truncation="error"), renderer, "train")
    with pytest.raises(DataError, match="No row of the train data is left: 1 of 1 were dropped"):
        build_dataset(config(write("b.jsonl", [long]), max_length=128, truncation="drop"), renderer, "train")


def test_a_row_with_no_trained_token_is_an_error_with_its_line(write: Write, renderer: Renderer) -> None:
    untrained = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": [0]}
    path = write("a.json", json.dumps([{**untrained, "label": [1]}, untrained], indent=2))
    with pytest.raises(
        DataError, match=r"a.json:17  found 1 replies, none of them to be trained; allowed: at least one"
    ):
        build_dataset(config(path), renderer, "train")
    prompt = write("b.jsonl", [{"question": "long " * 100, "answer": "a"}])
    with pytest.raises(DataError, match=r"b.jsonl:1  found \d+ prompt tokens, which leave no room for the reply"):
        build_dataset(config(prompt, max_length=32), renderer, "train")


def test_reading_and_rendering_problems_are_listed_together(write: Write, tokenizers: dict[str, Any]) -> None:
    llama2 = Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "llama2"))
    user, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    path = write("a.jsonl", [{"messages": [user, user, reply]}, {"messages": [user]}, {"messages": [user, reply]}])
    with pytest.raises(DataError) as raised:
        build_dataset(config(path), llama2, "train")
    text = str(raised.value)
    assert text.startswith("2 rows of 3 cannot be used:")
    assert "a.jsonl:1  found turns (user, user) that template 'llama2' refuses" in text
    assert "a.jsonl:2  field 'messages[0]'" in text


def test_splits_limits_and_setting_aside(write: Write, renderer: Renderer) -> None:
    path = write("d/train.jsonl", ROWS)
    place = DataConfig(dataset_name_or_path=str(path.parent), eval_split_ratio=0.25)
    train, _ = build_dataset(place, renderer, "train", seed=5)
    held, _ = build_dataset(place, renderer, "eval", seed=5)
    assert (len(train), len(held)) == (30, 10)
    texts = {tuple(d[i]["input_ids"]) for d in (train, held) for i in range(len(d))}
    assert len(texts) == 40
    assert build_dataset(place, renderer, "eval", seed=6)[0].fingerprint != held.fingerprint
    write("d/dev.jsonl", ROWS[:4])
    assert len(build_dataset(place, renderer, "eval")[0]) == 4, "a dev file wins over setting rows aside"
    assert len(build_dataset(place, renderer, "train")[0]) == 40
    assert len(build_dataset(place, renderer, "quant")[0]) == 40, "no quant.json: the training data"
    limited = DataConfig(dataset_name_or_path=str(path.parent), max_train_samples=7, max_eval_samples=3)
    assert [len(build_dataset(limited, renderer, split)[0]) for split in ("train", "eval")] == [7, 3]


def test_sources_are_mixed(write: Write, renderer: Renderer) -> None:
    paths = [str(write("a.jsonl", ROWS[:10])), str(write("b.jsonl", [{"src": "q", "tgt": "a"}] * 5))]
    concat, report = build_dataset(DataConfig(train_dataset_path=paths), renderer, "train")
    assert (len(concat), report.format) == (15, "columns + paddlenlp")
    over = DataConfig(train_dataset_path=paths, mix_strategy="interleave_over", train_dataset_prob=[0.5, 0.5])
    mixed, _ = build_dataset(over, renderer, "train", seed=1)
    assert len(mixed) > 15
    assert mixed.fingerprint == build_dataset(over, renderer, "train", seed=1)[0].fingerprint


def test_generation_evaluation_is_never_packed(write: Write, renderer: Renderer) -> None:
    path = write("d/dev.jsonl", ROWS)
    options = {"dataset_name_or_path": str(path.parent), "packing": True, "max_length": 200}
    assert len(build_dataset(DataConfig(**options), renderer, "eval")[0]) < 40
    assert len(build_dataset(DataConfig(**options, eval_with_do_generation=True), renderer, "eval")[0]) == 40
    assert len(build_dataset(DataConfig(**options, eval_packing=False), renderer, "eval")[0]) == 40


def test_the_fingerprint_tells_data_apart(write: Write, renderer: Renderer, tokenizers: dict[str, Any]) -> None:
    path = write("a.jsonl", ROWS)
    base = build_dataset(config(path), renderer, "train")[0].fingerprint
    assert base.startswith("sha256:") and base == build_dataset(config(path), renderer, "train")[0].fingerprint
    chatml = Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "chatml"))
    changed = [*ROWS[:-1], {**ROWS[-1], "answer": "No."}]
    others = [
        build_dataset(config(path), chatml, "train"),
        build_dataset(config(path, packing=True), renderer, "train"),
        build_dataset(config(path, max_train_samples=39), renderer, "train"),
        build_dataset(config(write("b.jsonl", changed)), renderer, "train"),
    ]
    assert len({base, *(dataset.fingerprint for dataset, _ in others)}) == 5
    ids = [[1, 2, 3]]
    assert SFTDataset(ids, [[False, True, True]]).fingerprint != SFTDataset(ids, [[False, False, True]]).fingerprint


def test_the_report_in_text(write: Write, renderer: Renderer) -> None:
    path = write("a.jsonl", ROWS)
    _, report = build_dataset(config(path, packing=True, max_length=128), renderer, "train")
    text = report.text(batch_size=2)
    for part in (
        "train data",
        "columns (recognised)",
        "40",
        "packs",
        "trained tokens",
        "padding",
        "0 rows cut, 0 dropped",
    ):
        assert part in text
    assert report.trained_share == pytest.approx(report.trained_tokens / report.tokens)
    loose = build_dataset(config(path), renderer, "train")[1]
    shares = [loose.padding_share(8, grouped) for grouped in (False, True)]
    assert 0 < shares[1] < shares[0] < 1
    assert loose.padding_share(8, width=100) == pytest.approx(1 - sum(loose.lengths) / 4000)
    assert np.isclose(loose.padding_share(1), 0)


def test_tools_that_the_template_does_not_show_are_noticed(write: Write, tokenizers: dict[str, Any]) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
           "tools": [{"type": "function", "function": {"name": "f"}}]}  # fmt: skip
    chatml = Renderer(tokenizers["smollm2"], load_template(tokenizers["smollm2"], "chatml"))
    notices = build_dataset(config(write("a.jsonl", [row])), chatml, "train")[1].notices
    assert notices == ["1 row lists tools, which template 'chatml' does not show to the model."]


def test_special_tokens_inside_a_message_are_noticed(write: Write, renderer: Renderer) -> None:
    path = write("a.jsonl", [*ROWS[:2], {"question": "q", "answer": "Stop<|im_end|> here"}])
    notices = build_dataset(config(path), renderer, "train")[1].notices
    told = f"1 row has the text of a special token in a message ({path}:3: '<|im_end|>'); it "
    kept = "stays ordinary text (remove it where it ends a reply: every reply gets its own stop token)."
    assert notices == [told + kept]
    plain = Renderer(renderer.tokenizer, load_template(renderer.tokenizer, "plain"))
    assert build_dataset(config(path), plain, "train")[1].notices == [told + "becomes that token."]


def test_the_view_shows_what_is_trained_after_packing_and_truncation(write: Write, renderer: Renderer) -> None:
    rows = [{"src": "Hi", "tgt": "你好🙂!"}, {"src": "2+2?", "tgt": "4"}]
    packed, _ = build_dataset(config(write("a.jsonl", rows), packing=True), renderer, "train")
    spans = first_sample_view(packed, renderer)
    assert [(span.text, span.segment) for span in spans if span.trained] == [
        ("你好🙂!<|im_end|>", 0),
        ("4<|im_end|>", 1),
    ]
    assert sum(span.tokens for span in spans if span.trained) == packed.num_trained_tokens(0)
    text = view_as_text(spans)
    assert "<|im_start|>assistant\n⟦你好🙂!<|im_end|>⟧\n--- next row of the pack ---\n<|im_start|>system" in text
    cut, _ = build_dataset(
        config(write("b.jsonl", [{"src": "Hi", "tgt": "word " * 99}]), max_length=40), renderer, "train"
    )
    assert view_as_text(first_sample_view(cut, renderer)).endswith("word⟧")


def test_a_long_row_is_shown_with_its_replies() -> None:
    spans = [Span("p" * 5000, False, 900), Span("reply", True, 2), Span("q" * 10, False, 3), Span("end", True, 1)]
    shown = shortened(spans, 1000)
    assert [span.text for span in shown[1:]] == ["reply", "q" * 10, "end"]
    assert shown[0].text == "p" * 125 + " … " + "p" * 125 and shown[0].tokens == 900
    assert shortened(spans[1:], 1000) == spans[1:]
    many = shortened([Span("p" * 200, False, 9), Span("r" * 200, True, 9)] * 20, 1000)
    assert len(many) < 20 and many[-1].text == " …" and not many[-1].trained
