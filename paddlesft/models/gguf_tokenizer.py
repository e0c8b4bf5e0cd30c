"""The tokenizer inside a GGUF file -> tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from paddlesft.directories import write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf_bpe import byte_level_bpe
from paddlesft.models.gguf_file import AGAIN, INSTEAD, GGUFFile
from paddlesft.models.gguf_sentencepiece import restore_user_defined, sentencepiece_bpe

CONTROL, USER_DEFINED = 3, 4  # token types of the format


class Kind(NamedTuple):
    """What one value of ``tokenizer.ggml.model`` means.

    Attributes:
        title: the kind's name for people.
        build: makes the ``tokenizers`` object, without added tokens, from the file, its tokens and their types.
        restore: corrects the stored tokens and types first; None where they are right.
        begins: every text begins with the bos token unless the file says otherwise.
    """

    title: str
    build: Callable[[GGUFFile, list[str], list[int]], Any]
    restore: Callable[[list[str], list[int]], tuple[list[str], list[int]]] | None = None
    begins: bool = False


KINDS = {
    "gpt2": Kind("byte-level BPE", byte_level_bpe),
    "llama": Kind("SentencePiece BPE", sentencepiece_bpe, restore_user_defined, begins=True),
}


def write_tokenizer(gguf: GGUFFile, directory: Path, max_length: int | None) -> None:
    """Write the tokenizer files of a model directory.

    Args:
        gguf: the file.
        directory: where to.
        max_length: number of positions that the model knows; None without such a limit.

    Raises:
        ModelDirectoryError: the file's tokenizer is of another kind, or its parts are missing.
    """
    fields = gguf.fields
    name = fields.get("tokenizer.ggml.model")
    if name not in KINDS:
        known = " and ".join(f"{key!r} ({kind.title})" for key, kind in KINDS.items())
        raise ModelDirectoryError(f"{gguf.path} has a tokenizer of kind {name!r}; import covers {known}. {INSTEAD}")
    kind = KINDS[name]
    tokens, types = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type")
    if not types or len(types) != len(tokens):
        raise ModelDirectoryError(f"{gguf.path}: the tokenizer's token types are missing or incomplete. {AGAIN}")
    if kind.restore:
        tokens, types = kind.restore(tokens, types)
    added = [i for i, of in enumerate(types) if of in (CONTROL, USER_DEFINED)]
    tokenizer = kind.build(gguf, tokens, types)
    _add_tokens(tokenizer, tokens, types, added)
    defaults = {"bos": kind.begins, "eos": False}
    adds = {end: bool(fields.get(f"tokenizer.ggml.add_{end}_token", default)) for end, default in defaults.items()}
    _add_ends(tokenizer, tokens, {end: fields.get(f"tokenizer.ggml.{end}_token_id") for end in adds if adds[end]})
    tokenizer.save(str(directory / "tokenizer.json"))

    def text(key: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    ends = {"bos_token": text("bos"), "eos_token": text("eos"), "unk_token": text("unknown")}
    config = {
        # paddlenlp's LlamaTokenizerFast would invent what is missing of <s>, </s> and <unk>
        "tokenizer_class": "LlamaTokenizerFast" if all(ends.values()) else "PreTrainedTokenizerFast",
        "add_bos_token": adds["bos"],
        "add_eos_token": adds["eos"],
        **ends,
        "pad_token": text("padding") or text("eos"),
        "added_tokens_decoder": {str(i): _added(tokens[i], types[i] == CONTROL) for i in added},
        # where tokenizer.json puts the space, transformers must not be told again: it would rebuild the tokenizer
        "add_prefix_space": bool(fields.get("tokenizer.ggml.add_space_prefix", False)) if name == "gpt2" else None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        # a decoder has no use for token_type_ids, which paddlenlp would add
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    content = {key: value for key, value in config.items() if value is not None}
    write_json(directory / "tokenizer_config.json", content)


def _add_tokens(tokenizer: Any, tokens: list[str], types: list[int], added: list[int]) -> None:
    """Make tokens that are found in the text before anything else; special ones are left out by decoding."""
    from tokenizers import AddedToken

    for index in added:
        special = types[index] == CONTROL
        token = AddedToken(tokens[index], special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])


def _add_ends(tokenizer: Any, tokens: list[str], ends: dict[str, int | None]) -> None:
    """Put the token of ``ends["bos"]`` before every text and that of ``ends["eos"]`` behind it."""
    from tokenizers import processors

    known = {end: (tokens[index], index) for end, index in ends.items() if index is not None}
    if known:
        begin, close = known.get("bos"), known.get("eos")
        text = " ".join([*([begin[0]] if begin else []), "$A", *([close[0]] if close else [])])
        tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=list(known.values()))


def _added(token: str, special: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": token, **flags, "special": special}
