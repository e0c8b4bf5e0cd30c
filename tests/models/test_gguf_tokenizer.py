"""Tokenizers of GGUF files give the ids of the tokenizers that they were made from."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf import import_gguf
from paddlesft.models.gguf_bpe import PRE_TOKENIZERS
from paddlesft.models.gguf_sentencepiece import merges_of
from tests.models.tiny_gguf import HIDDEN, tiny_weights, write_gguf, write_tiny_gguf

REPO = Path(__file__).resolve().parents[2]
TEXTS = (
    "", " ", "a", "  two spaces  and   three   ", "\n", "\n\n\n  \n\t\tx\r\n\r\n", "trailing \n ",
    "Don't we'll THEY'RE i'M o'clock 's", "The capital of France is Paris, isn't it?",
    "3.14159 12345678 1,000,000 ½ ²³ ٣٤ Ⅷ", "def f(x):\n    if x >= 2:\n\treturn x**2  # square\n",
    "a=b;c!=d&&e||f(g)[h]{i}<j>", "http://example.org/~me?q=1&r=$2^3",
    "今天是2024年3月5日，天气很好。你好！“引号”、《书名》……", "日本語のテキスト、カタカナ。", "한국어 텍스트",
    "مرحبا، كيف الحال؟ ۔", "नमस्ते। दुनिया", "🤖🎉👩‍👩‍👧‍👦 🇫🇷 ok👍🏽", "Ünïcödé naïve façade",
    "cafe\u0301 A\u030a \u1100\u1161\u11a8 \ufb01", "non\u00a0breaking\u3000wide\u2028line", "x\u200by\u200dz\ufeff",
    "a(b|c)d .. ... ….,!?", "tab\tseparated\tvalues", "_snake_case_ CamelCase kebab-case", "'", "''''",
    "----====####", "<html><b>text</b></html>", "$100 +5 =7 ^2 ~x |y", "Привет, мир! Ёлка", "ΑΒΓ αβγ ς", "0",
    "00000000", "a1b2c3",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Chosen texts, the READMEs, and random strings of their characters."""
    prose = [line for name in ("README.md", "README_zh.md") for line in (REPO / name).read_text("utf-8").splitlines()]
    pool = sorted(set("".join(TEXTS))) + list("  \n\t'sSdD0123aeiou,.!") * 4
    chance = random.Random(5)
    mixed = ["".join(chance.choices(pool, k=chance.randint(1, 30))) for _ in range(400)]
    return [*TEXTS, *prose, *mixed]


def import_with(folder: Path, vocabulary: dict[str, Any]) -> Any:
    """Import a tiny llama with this tokenizer and load what was written."""
    from paddlesft.models import load_tokenizer

    weights = tiny_weights()
    rows = np.zeros((len(vocabulary["tokens"]), HIDDEN), np.float32)
    weights |= {"model.embed_tokens.weight": rows, "lm_head.weight": rows}
    tiny = write_tiny_gguf(folder / "tiny.gguf", weights)
    from paddlesft.models.gguf_file import GGUFFile

    source = GGUFFile(tiny)
    keys = {key.removeprefix("llama."): value for key, value in source.fields.items() if key.startswith("llama.")}
    tensors = {name: source.array(name) for name in source.tensors}
    write_gguf(folder / "m.gguf", "llama", keys, tensors, vocabulary)
    return load_tokenizer(import_gguf(folder / "m.gguf", folder / "out"))


@pytest.fixture(scope="module")
def byte_level(
    texts: list[str], oracle: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A byte-level BPE whose merges cross all boundaries of words, so that every rule of cutting shows in its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "texts.json").write_text(json.dumps(texts))
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [3 if token in special else 1 for token in tokens]
    vocabulary = {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": merges, "eos_token_id": 0}
    return {"vocabulary": vocabulary, "expected": oracle("gguf_tokens.py", folder)}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_bpe(pre: str, byte_level: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    tokenizer = import_with(tmp_path, {**byte_level["vocabulary"], "pre": pre})
    expected = byte_level["expected"]
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    wrong = [(text, ours, theirs) for text, ours, theirs in zip(texts, found, expected[pre]) if ours != theirs]
    assert not wrong, f"{len(wrong)} of {len(texts)}, first: {wrong[0]}"
    others = [name for name in expected if name != pre]
    assert all(expected[name] != expected[pre] for name in others), "the texts do not tell the rules apart"
    assert len(tokenizer) == len(byte_level["vocabulary"]["tokens"]), "no token was invented"
    composed = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in texts]
    assert [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in found] == composed
    marked = tokenizer("<|im_start|>a<|im_end|>", add_special_tokens=False)["input_ids"]
    assert (marked[0], marked[-1], len(marked)) == (1, 2, 3)


def test_files_without_a_name_for_cutting_are_cut_as_gpt2(
    byte_level: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    tokenizer = import_with(tmp_path, byte_level["vocabulary"])
    assert tokenizer(texts[8], add_special_tokens=False)["input_ids"] == byte_level["expected"]["gpt-2"][8]


def sentencepiece_vocabulary(processor: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes for a SentencePiece model."""
    kinds = (
        (processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6),
    )  # fmt: skip
    count = processor.get_piece_size()
    return {
        "model": "llama", "pre": "default", "tokens": [processor.id_to_piece(i) for i in range(count)],
        "scores": [processor.get_score(i) for i in range(count)],
        "token_type": [next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in range(count)],
        "bos_token_id": processor.bos_id(), "eos_token_id": processor.eos_id(), "unknown_token_id": processor.unk_id(),
    }  # fmt: skip


# Gemma's settings: no space, and tokens that are found in the text before anything else
GEMMA_TOKENS = [*("\n" * n for n in range(2, 9)), *("▁" * n for n in range(2, 9)), "<html>", "<b>", "</b>", "<table>"]


@pytest.mark.parametrize(("prefix", "defined"), [(True, []), (False, []), (False, GEMMA_TOKENS)])
def test_sentencepiece(prefix: bool, defined: list[str], texts: list[str], tmp_path: Path) -> None:
    """Llama's and Mistral's settings (a space is put before the text), those without the space, and Gemma's."""
    import sentencepiece

    trained = [line for text in texts for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(trained), model_prefix=str(tmp_path / "sp"), model_type="bpe", vocab_size=1500,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, add_dummy_prefix=prefix, allow_whitespace_only_pieces=True, minloglevel=2,
        user_defined_symbols=defined,
    )  # fmt: skip
    truth = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    vocabulary = sentencepiece_vocabulary(truth)
    vocabulary |= {} if prefix else {"add_space_prefix": False}
    tokenizer = import_with(tmp_path, vocabulary)
    runs = ["a" * n for n in range(1, 40)] + [" " * n + "x" for n in range(40)] + ["-=" * n for n in range(20)]
    runs += ["a" + "\n" * n for n in range(20)] + ["<table>  <b>x</b>\n\n\n<tab", "ab<html>\n   cd"]
    for text in [*texts, *runs]:
        theirs = truth.encode(text)
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ours == theirs, (text, tokenizer.convert_ids_to_tokens(ours), [truth.id_to_piece(i) for i in theirs])
        assert tokenizer.decode(ours, clean_up_tokenization_spaces=False) == text
    assert sum(kind == 6 for kind in vocabulary["token_type"]) == 256
    assert tokenizer("a")["input_ids"] == [truth.bos_id(), *truth.encode("a")], "SentencePiece models begin with <s>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert len(tokenizer) == 1500
    assert len(set(defined) & set(vocabulary["tokens"])) == len(defined)


def test_merges_follow_the_scores() -> None:
    scores = {"a": -4.0, "b": -5.0, "ab": -1.0, "aba": -2.0, "xy": -0.5}
    assert merges_of(scores) == [("a", "b"), ("ab", "a")]


REFUSALS = {
    "equal scores": ({"scores": [-1000.0] * 12}, r"all scores of the tokenizer are equal, so that they give no order"),
    "few scores": ({"scores": [-1.0, -2.0]}, r"the tokenizer's scores are missing or incomplete"),
    "rewritten": ({"remove_extra_whitespaces": True}, r"rewrites text \(tokenizer.ggml.remove_extra_whitespaces\)"),
    "types": ({"token_type": [1, 1]}, r"the tokenizer's token types are missing or incomplete"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, tmp_path: Path) -> None:
    from tests.models.tiny_gguf import TOKENS, TYPES

    changes, message = REFUSALS[case]
    scores = [-float(i) for i in range(12)]
    vocabulary = {"model": "llama", "tokens": TOKENS, "token_type": TYPES, "scores": scores} | changes
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        import_with(tmp_path, vocabulary)
    assert "Hugging Face directory" in str(caught.value)  # what to do next
    assert not (tmp_path / "out").exists()
