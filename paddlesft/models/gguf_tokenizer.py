"""The tokenizer inside a GGUF file -> tokenizer.json and tokenizer_config.json.

Covers byte-level BPE (``tokenizer.ggml.model`` = "gpt2"). How text is cut before BPE is not stored as a rule but as a
name (``tokenizer.ggml.pre``); the rules below are those of the published tokenizers of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.directories import write_json
from paddlesft.errors import ModelDirectoryError

if TYPE_CHECKING:
    from paddlesft.models.gguf import GGUFFile

CONTROL, USER_DEFINED = 3, 4  # token types of the format
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def pre_tokenizer(name: str) -> Any:
    """Build the pre-tokenizer that ``tokenizer.ggml.pre`` names (one of ``PRE_TOKENIZERS``)."""
    from tokenizers import Regex, pre_tokenizers

    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    split = LLAMA3_SPLIT if name == "llama-bpe" else QWEN2_SPLIT
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write_tokenizer(gguf: GGUFFile, directory: Path) -> None:
    """Write the tokenizer files of a model directory.

    Raises:
        ModelDirectoryError: the file's tokenizer is of another kind, or its parts are missing.
    """
    fields = gguf.fields
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ModelDirectoryError(
            f"{gguf.path} has a tokenizer of kind {kind!r}; import covers 'gpt2' (byte-level BPE). "
            "Use the model's Hugging Face directory instead."
        )
    if pre not in PRE_TOKENIZERS:
        raise ModelDirectoryError(
            f"{gguf.path}: tokenizer.ggml.pre is {pre!r}; known: {', '.join(PRE_TOKENIZERS)}. "
            "Use the model's Hugging Face directory instead."
        )
    tokens, merges = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.merges")
    types = fields.get("tokenizer.ggml.token_type")
    if not merges or not types or len(types) != len(tokens):
        raise ModelDirectoryError(f"{gguf.path}: the tokenizer's merges or token types are missing or incomplete.")
    added = [i for i, of in enumerate(types) if of in (CONTROL, USER_DEFINED)]
    adds = [
        (tokens[fields[f"tokenizer.ggml.{end}_token_id"]], fields[f"tokenizer.ggml.{end}_token_id"])
        if fields.get(f"tokenizer.ggml.add_{end}_token")
        else None
        for end in ("bos", "eos")
    ]
    _write_bpe(directory / "tokenizer.json", tokens, merges, types, added, pre, adds)

    def text(key: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "add_eos_token": bool(fields.get("tokenizer.ggml.add_eos_token", False)),
        "bos_token": text("bos"),
        "eos_token": text("eos"),
        "unk_token": text("unknown"),
        "pad_token": text("padding") or text("eos"),
        "added_tokens_decoder": {str(i): _added(tokens[i], types[i] == CONTROL) for i in added},
        "add_prefix_space": bool(fields.get("tokenizer.ggml.add_space_prefix", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.require("context_length"),
        # a decoder has no use for token_type_ids, which paddlenlp would add
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    content = {key: value for key, value in config.items() if value is not None}
    write_json(directory / "tokenizer_config.json", content)


def _write_bpe(
    path: Path,
    tokens: list[str],
    merges: list[str],
    types: list[int],
    added: list[int],
    pre: str,
    adds: list[tuple[str, int] | None],
) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        # Llama 3 takes whole words from the vocabulary before merging
        ignore_merges=pre == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    for index in added:
        special = types[index] == CONTROL
        token = AddedToken(tokens[index], special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    if any(adds):
        begin, end = adds
        text = " ".join([*([begin[0]] if begin else []), "$A", *([end[0]] if end else [])])
        tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=[a for a in adds if a])
    tokenizer.save(str(path))


def _added(token: str, special: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": token, **flags, "special": special}
