"""What lies in a model directory, readable without paddle: its config and its tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken",
    "ice_text.model", "cog-pretrain.model", "vocab.txt",
    "chat_template.json", "chat_template.jinja",
)  # fmt: skip


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read config.json as it is.

    Raises:
        ModelDirectoryError: the directory or the file is missing, or the file is not JSON.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelDirectoryError(f"{directory} is not a directory. Give the path of a model directory.")
    if (directory / "lora_config.json").is_file() or (directory / "prefix_config.json").is_file():
        kind = "LoRA adapter" if (directory / "lora_config.json").is_file() else "prefix"
        option = "lora_path" if kind == "LoRA adapter" else "prefix_path"
        raise ModelDirectoryError(
            f"{directory} is a {kind} directory, not a model. Give it as {option}, beside the model it was trained on."
        )
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in directory.iterdir())[:6]) or "nothing"
        raise ModelDirectoryError(f"{directory} is no model directory: it has no config.json. Found: {found}.")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model or adapter directory.

    Raises:
        ModelDirectoryError: it is not JSON, or its content is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelDirectoryError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelDirectoryError(f"{path} holds no JSON object.")
    return content


def copy_tokenizer(source: str | Path, directory: str | Path) -> None:
    """Copy the tokenizer and template files of one model directory into another."""
    for name in TOKENIZER_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(directory) / name)
