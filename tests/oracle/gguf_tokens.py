"""Token ids of byte-level BPE by the published rules. Run in the torch environment: gguf_tokens.py FOLDER

FOLDER holds vocab.json, merges.txt and texts.json. GPT-2's and Qwen2's ids come from transformers' own Python classes.
For the other names the text is cut here with the `regex` package: Llama 3's expression is the one in transformers'
converter, BLOOM's the one in its tokenizer.json, "default" the list in llama.cpp's llama-vocab.cpp.
"""

import json
import sys
from inspect import signature
from pathlib import Path

import regex
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

folder = Path(sys.argv[1])
texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
files = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
gpt2 = GPT2Tokenizer(**files)
qwen2 = Qwen2Tokenizer(**files)
words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
llama3 = regex.compile(signature(TikTokenConverter).parameters["pattern"].default)
bloom = regex.compile(r"(?V1) ?[^(\s|[.,!?…。，、।۔،])]+")
default = [
    regex.compile(r"[\p{P}\$\+<=>\^~\|]+"),
    regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
    regex.compile(r"\p{N}+"),
    regex.compile(r"[0-9][0-9][0-9]"),
]


def cut(pieces, pattern):
    """Cut every piece at the matches of a pattern; what lies between two matches is a piece, too."""
    for piece in pieces:
        end = 0
        for match in pattern.finditer(piece):
            yield from (part for part in (piece[end : match.start()], match.group()) if part)
            end = match.end()
        if piece[end:]:
            yield piece[end:]


def ids(text, patterns, whole_words=False):
    pieces = [text] if text else []
    for pattern in patterns:
        pieces = list(cut(pieces, pattern))
    out = []
    for piece in pieces:
        letters = "".join(gpt2.byte_encoder[byte] for byte in piece.encode("utf-8"))
        parts = [letters] if whole_words and letters in gpt2.encoder else gpt2.bpe(letters).split(" ")
        out += [gpt2.encoder[part] for part in parts]
    return out


answer = {
    "gpt-2": [gpt2(text, add_special_tokens=False)["input_ids"] for text in texts],
    "qwen2": [qwen2(text, add_special_tokens=False)["input_ids"] for text in texts],
    "smollm": [ids(text, [regex.compile(r"\p{N}"), words]) for text in texts],
    "llama-bpe": [ids(text, [llama3], whole_words=True) for text in texts],
    "bloom": [ids(text, [bloom]) for text in texts],
    "default": [ids(text, default) for text in texts],
}
print(json.dumps(answer))
