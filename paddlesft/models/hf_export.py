"""Model directories -> Hugging Face layout, readable by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddlesft.directories import new_directory, write_json
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import copy_tokenizer, read_config
from paddlesft.models.families import Family, family_of
from paddlesft.models.hugging_face import IGNORED_ENDINGS, name_pairs
from paddlesft.models.load import load_config, paddle_directory
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import TORCH_LAYOUT, NewTensor, write_weights

# What transformers reads for this architecture; everything else in config.json is Paddle's own.
CONFIG_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "initializer_range", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
SCALING_NAMES = {"linear": "linear", "dynamic_ntk": "dynamic"}


def write_hugging_face(src: str | Path, dst: str | Path, overwrite: bool = False) -> Path:
    """Write a model directory in Hugging Face's layout, complete or not at all.

    Args:
        src: a model directory; it is only read.
        dst: the directory to create.
        overwrite: replace ``dst`` when it has content.

    Returns:
        ``dst``; every tensor has the dtype that it has in ``src``.

    Raises:
        ModelDirectoryError: the model's family cannot be converted, or its weights do not fit the config.
    """
    src = paddle_directory(src)
    config = load_config(src)
    family = family_of(config)
    stored = stored_weights(src)
    tensors = torch_tensors(family, config, stored, src)
    with new_directory(dst, overwrite=overwrite) as scratch:
        content = hugging_face_config(config, family)
        write_json(scratch / "config.json", content)
        ids = {
            key: content[key]
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            if content.get(key) is not None
        }
        write_json(scratch / "generation_config.json", ids)
        copy_tokenizer(src, scratch)
        _rename_tokenizer_class(scratch)
        write_weights(scratch, tensors, TORCH_LAYOUT)
        write_provenance(
            scratch,
            kind="model",
            source={"name": str(src), "format": "paddle", "fingerprint": fingerprint(src)},
            dtype=content["torch_dtype"],
            fingerprint=fingerprint(scratch),
        )
    return Path(dst)


def hugging_face_config(config: Any, family: Family) -> dict[str, Any]:
    """Make the content of a Hugging Face config.json from a PaddleNLP config."""
    out = {"architectures": [family.hf_architecture], "model_type": family.model_types[0]}
    out |= {key: getattr(config, key) for key in CONFIG_KEYS if getattr(config, key, None) is not None}
    out |= {"hidden_act": out.get("hidden_act", "silu"), "attention_bias": False, "mlp_bias": False}
    out["torch_dtype"] = str(config.dtype or "float32")
    if getattr(config, "rope_scaling", None):
        out["rope_scaling"] = config.rope_scaling
    elif config.rope_scaling_type:
        if config.rope_scaling_type not in SCALING_NAMES:
            raise ModelDirectoryError(
                f"rope_scaling_type {config.rope_scaling_type!r} has no Hugging Face counterpart here. "
                f"Known: {', '.join(SCALING_NAMES)}, llama3."
            )
        kind = SCALING_NAMES[config.rope_scaling_type]
        out["rope_scaling"] = {"rope_type": kind, "type": kind, "factor": config.rope_scaling_factor}
    return out


def torch_tensors(family: Family, config: Any, stored: dict[str, NewTensor], src: Path) -> dict[str, NewTensor]:
    """Name and orient the tensors of a model directory as Hugging Face does."""
    pairs = [pair for pair in name_pairs(family, {**read_config(src), **_sizes(config)})]
    pairs = [pair for pair in pairs if not pair[0].endswith(IGNORED_ENDINGS)]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wanted = {target for _, target, _ in pairs}
    wrong = sorted(wanted ^ (set(stored) - tied))
    if wrong:
        raise ModelDirectoryError(
            f"{src}: {len(wrong)} tensors are missing or have no Hugging Face name: {', '.join(wrong[:3])}. "
            "Fused projections (fuse_attention_qkv, fuse_attention_ffn) cannot be exported."
        )
    out = {}
    for source, target, transposed in pairs:
        tensor = stored[target]
        if transposed:
            out[source] = NewTensor(tensor.dtype, tensor.shape[::-1], lambda t=tensor: t.make().T)
        else:
            out[source] = tensor
    return out


def _sizes(config: Any) -> dict[str, Any]:
    return {"num_hidden_layers": config.num_hidden_layers, "tie_word_embeddings": config.tie_word_embeddings}


def _rename_tokenizer_class(directory: Path) -> None:
    """Let transformers take tokenizer.json as it is: paddlenlp's class names and theirs differ in behaviour."""
    path = directory / "tokenizer_config.json"
    if path.is_file() and (directory / "tokenizer.json").is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(path, content)
