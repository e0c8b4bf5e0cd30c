"""The config.json of a model as PaddleNLP wants it, read without paddle and without the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config, read_object
from paddlesft.models.families import family_of
from paddlesft.models.family import Family

HUGGING_FACE_MARKS = ("transformers_version", "torch_dtype")


def read_paddle_config(path: str | Path) -> tuple[dict[str, Any], Family]:
    """Read the config of a model, and translate it when it is Hugging Face's.

    Args:
        path: a model directory, or a config.json alone.

    Returns:
        The content in Paddle's layout, and the model's family.

    Raises:
        ModelDirectoryError: there is no such file, it is of an unknown family, or it cannot be translated.
    """
    path = Path(path).expanduser()
    where = path / "config.json" if path.is_dir() else path
    if path.is_dir():
        config = read_config(path)
    elif path.is_file():
        config = read_object(path)
    else:
        raise ModelDirectoryError(f"{path} does not exist. Give a model directory or its config.json.")
    family = family_of(config, where=str(where))
    foreign = any(mark in config for mark in HUGGING_FACE_MARKS) and "paddlenlp_version" not in config
    if foreign and family.hf_layout is not None:
        return family.hugging_face_layout().paddle_config(config, where), family
    return config, family
