"""Tokenizers of other kinds than the embedded model's, trained on a few sentences when a test needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_tokenizers import SENTENCES


def sentencepiece_llama(directory: Path) -> Any:
    """A Llama tokenizer as Llama 1 and 2 have it: SentencePiece, dummy prefix space, byte fallback."""
    import sentencepiece
    from paddlenlp.transformers import LlamaTokenizer

    text = directory / "corpus.txt"
    text.write_text("\n".join(SENTENCES * 40), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(directory / "sp"), vocab_size=500, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", character_coverage=0.98, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return LlamaTokenizer(str(directory / "sp.model"))


def gpt2_bpe(directory: Path) -> Any:
    """A GPT-2 tokenizer (slow class): byte-level BPE, one special token for begin, end and padding."""
    from paddlenlp.transformers import GPTTokenizer
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES * 4, vocab_size=600, min_frequency=1, special_tokens=["<|endoftext|>"])
    trained.save_model(str(directory))
    return GPTTokenizer(
        vocab_file=str(directory / "vocab.json"),
        merges_file=str(directory / "merges.txt"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eol_token="<|endoftext|>",
    )


def qwen2_slow(directory: Path) -> Any:
    """A slow Qwen2 tokenizer with control tokens, and added tokens that are not special, as Qwen3 has them."""
    from paddlenlp.transformers import Qwen2Tokenizer
    from tokenizers import AddedToken

    gpt2_bpe(directory)
    texts = {600: "<|endoftext|>", 601: "<|im_start|>", 602: "<|im_end|>", 603: "<think>", 604: "</think>"}
    added = {i: AddedToken(text, special="|" in text, normalized=False) for i, text in texts.items()}
    return Qwen2Tokenizer(
        vocab_file=str(directory / "vocab.json"), merges_file=str(directory / "merges.txt"),
        added_tokens_decoder=added, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
    )  # fmt: skip


def exact_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids put together by hand: PaddleNLP's decode of a SentencePiece tokenizer adds and drops spaces."""
    if type(tokenizer).__name__ != "LlamaTokenizer":
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    data = b""
    for piece in tokenizer.convert_ids_to_tokens(ids):
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        data += bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("\u2581", " ").encode()
    return data.decode()
