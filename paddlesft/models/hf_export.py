"""Model directories -> Hugging Face layout, readable by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.directories import new_directory, refuse_inside, write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import copy_tokenizer, read_object
from paddlesft.models.families import family_of
from paddlesft.models.hf_layouts.layout import HEAD, Layout
from paddlesft.models.hf_layouts.tensor_pairs import hugging_face_tensors
from paddlesft.models.load import load_config, paddle_directory
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.quantized.origin import refuse_quantized
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import DTYPE, TORCH_LAYOUT, NewTensor, write_weights

# Under these names a tied model may store its embedding a second time.
SECOND_COPIES = (HEAD, "lm_head.decoder_weight", "lm_head.decoder.weight")
PADDLE_ONLY = ("decode_strategy", "paddlenlp_version")  # in generation_config.json


def write_hugging_face(
    src: str | Path,
    dst: str | Path,
    overwrite: bool = False,
    dtype: str | None = None,
    chat_template: str | None = None,
    **facts: Any,
) -> Path:
    """Write a model directory in Hugging Face's layout, complete or not at all.

    Args:
        src: a model directory; it is only read.
        dst: the directory to create.
        overwrite: replace ``dst`` when it has content.
        dtype: float32, bfloat16 or float16; None: every tensor keeps its own.
        chat_template: jinja text for transformers' tokenizer (``paddlesft.data.transformers_template``), instead of the
            template that the tokenizer's files have; None: those are copied as they are.
        facts: entries of ``paddlesft.json``, over those that are written anyhow.

    Returns:
        ``dst``.

    Raises:
        ModelDirectoryError: the model's family cannot be converted, its weights are quantized, or they do not fit the
            config.
    """
    refuse_inside(dst, src)
    src = paddle_directory(src)
    refuse_quantized(src, "for Hugging Face's layout")
    config = load_config(src)
    layout = family_of(config).hugging_face_layout()
    stored = stored_weights(src)
    if has_own_head(layout, config, stored):
        config.tie_word_embeddings = False
    content = layout.hugging_face_config(config)
    tensors = torch_tensors(layout, config, stored, src)
    if dtype is not None:
        content["torch_dtype"] = dtype
        tensors = {name: _cast(tensor, DTYPE[dtype]) for name, tensor in tensors.items()}
    with new_directory(dst, overwrite=overwrite) as scratch:
        write_json(scratch / "config.json", content)
        write_json(scratch / "generation_config.json", _generation_config(src, content))
        copy_tokenizer(src, scratch)
        _rename_tokenizer_class(scratch)
        if chat_template is not None:
            _put_template(scratch, chat_template)
        write_weights(scratch, tensors, TORCH_LAYOUT)
        source = {"name": str(src), "format": "paddle", "fingerprint": fingerprint(src)}
        told = {"source": source, "dtype": content["torch_dtype"], "fingerprint": fingerprint(scratch)}
        write_provenance(scratch, **{"kind": "model", **told, **facts})
    return Path(dst)


def _cast(tensor: NewTensor, code: str) -> NewTensor:
    return NewTensor(code if tensor.dtype in DTYPE.values() else tensor.dtype, tensor.shape, tensor.make)


def _generation_config(src: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of config.json and, over them, what the model's own generation_config.json says."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    out = {key: content[key] for key in ids if content.get(key) is not None}
    path = src / "generation_config.json"
    own = read_object(path) if path.is_file() else {}
    out |= {key: value for key, value in own.items() if value is not None and key not in PADDLE_ONLY}
    if own.get("decode_strategy") == "sampling":
        out.setdefault("do_sample", True)
    return out


def has_own_head(layout: Layout, config: Any, stored: dict[str, NewTensor]) -> bool:
    """Whether a model that calls itself tied computes with a stored head that differs from its embedding."""
    entries = config.to_dict()
    head = layout.tied_head(entries)
    return head in stored and layout.tied(entries) and not _equal(stored, head, layout.paddle_embedding(entries))


def torch_tensors(layout: Layout, config: Any, stored: dict[str, NewTensor], src: Path) -> dict[str, NewTensor]:
    """Name and orient the tensors of a model directory as Hugging Face does.

    Args:
        layout: the family's.
        config: the model's PaddleNLP config.
        stored: the model's tensors.
        src: named in errors.

    Raises:
        ModelDirectoryError: tensors are missing or without a counterpart, or a tied head differs from the embedding.
    """
    entries = config.to_dict()
    pairs = layout.tensor_pairs(entries)
    paddle_names = {pair.paddle for pair in pairs}
    wrong = sorted(paddle_names ^ {name for name in stored if name not in SECOND_COPIES or name in paddle_names})
    if wrong:
        raise ModelDirectoryError(
            f"{src}: {len(wrong)} tensors are missing or have no Hugging Face name: {', '.join(wrong[:3])}. "
            "Fused projections (fuse_attention_qkv, fuse_attention_ffn) cannot be exported."
        )
    if layout.tied(entries):
        _check_copies(stored, layout.paddle_embedding(entries), src)
    return hugging_face_tensors(pairs, stored)


def _check_copies(stored: dict[str, NewTensor], embedding: str, src: Path) -> None:
    """Refuse a head that has drifted away from the embedding it is said to be: one of the two would be lost."""
    for name in SECOND_COPIES:
        if name in stored and not _equal(stored, name, embedding):
            raise ModelDirectoryError(
                f"{src}: the config says tie_word_embeddings, but {name} differs from {embedding}. "
                "A Hugging Face directory would keep only one of them. Set tie_word_embeddings to false if the model "
                "was trained with both."
            )


def _equal(stored: dict[str, NewTensor], one: str, other: str) -> bool:
    return np.array_equal(stored[one].make(), stored[other].make())


def _rename_tokenizer_class(directory: Path) -> None:
    """Let transformers take tokenizer.json as it is: paddlenlp's class names and theirs differ in behaviour."""
    path = directory / "tokenizer_config.json"
    if path.is_file() and (directory / "tokenizer.json").is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(path, content)


def _put_template(directory: Path, template: str) -> None:
    """Put a chat template where every version of transformers looks for it, in place of the one that was copied."""
    for name in ("chat_template.jinja", "chat_template.json"):
        (directory / name).unlink(missing_ok=True)
    path = directory / "tokenizer_config.json"
    if path.is_file():
        write_json(path, read_object(path) | {"chat_template": template})
    else:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
