"""Hugging Face directories -> Paddle layout, beside the source and never inside it.

The two layouts hold the same numbers under other names, with Linear weights transposed. The pairs of names come from
paddlenlp's own mappings; what they do not cover is refused by name instead of being dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from paddlesft.directories import new_directory
from paddlesft.errors import ModelDirectoryError
from paddlesft.models.cache import cached_directory
from paddlesft.models.directory import copy_tokenizer, read_config
from paddlesft.models.families import Family, family_of
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.weights import PADDLE_LAYOUT, NewTensor, StoredTensor, read_weights, weight_files, write_weights

logger = logging.getLogger("paddlesft")

CONVERSION_VERSION = 1  # raise when the same source would give another directory
ROPE_TYPES = ("default", "linear", "dynamic", "llama3")
# Buffers that old checkpoints store although they follow from the config.
IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")


def converted(directory: str | Path) -> Path:
    """Return a Hugging Face directory in Paddle's layout, from the user's cache; converted there on first use.

    Args:
        directory: holds config.json and safetensors of torch layout; it is only read.

    Raises:
        ModelDirectoryError: the model is of a family that cannot be converted, incomplete, or quantised.
    """
    directory = Path(directory).resolve()
    name = directory.name
    if directory.parent.name == "snapshots":  # Hugging Face's cache: models--org--name/snapshots/COMMIT
        name = directory.parent.parent.name.removeprefix("models--").replace("--", "-")
    key = f"converted/{name}-{source_key(directory)}-v{CONVERSION_VERSION}"
    return cached_directory(key, lambda scratch: write_paddle_model(directory, scratch))


def convert_hugging_face(src: str | Path, dst: str | Path, overwrite: bool = False) -> Path:
    """Convert a Hugging Face directory into a directory of your own choice, complete or not at all.

    Args:
        src: the source; it is only read.
        dst: the directory to create, not inside ``src``.
        overwrite: replace ``dst`` when it has content.

    Returns:
        ``dst``.

    Raises:
        ModelDirectoryError: as ``converted``, or ``dst`` lies inside ``src``.
    """
    source, target = Path(src).resolve(), Path(dst).resolve()
    if target == source or source in target.parents:
        raise ModelDirectoryError(
            f"{dst} lies inside the source {src}, which is never written to. Choose another place."
        )
    with new_directory(dst, overwrite=overwrite) as scratch:
        write_paddle_model(source, scratch)
    return Path(dst)


def source_key(directory: Path) -> str:
    """Name the content of a source: the text files by content, the large weight files by size and time of change."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.json")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    for path in weight_files(directory):
        facts = path.stat()
        digest.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def write_paddle_model(src: Path, directory: Path) -> None:
    """Fill an empty directory with the Paddle-layout copy of a Hugging Face directory (see ``converted``).

    Every tensor keeps its dtype; one tensor is in memory at a time.
    """
    config = read_config(src)
    family = family_of(config, where=str(src / "config.json"))
    stored, _ = read_weights(src)
    paddle_config = convert_config(config, stored, src)
    tensors = paddle_tensors(family, paddle_config, stored, src)
    (directory / "config.json").write_text(json.dumps(paddle_config, indent=2) + "\n", encoding="utf-8")
    if (src / "generation_config.json").is_file():
        shutil.copyfile(src / "generation_config.json", directory / "generation_config.json")
    copy_tokenizer(src, directory)
    write_weights(directory, tensors, PADDLE_LAYOUT)
    write_provenance(
        directory,
        kind="model",
        source={"name": str(src), "format": "hugging_face"},
        dtype=paddle_config["dtype"],
        fingerprint=fingerprint(directory),
    )
    logger.info("converted %s: %d tensors (%s)", src, len(tensors), paddle_config["dtype"])


def convert_config(config: dict[str, Any], stored: dict[str, StoredTensor], src: Path) -> dict[str, Any]:
    """Translate config.json: what paddlenlp would ignore is translated or refused, never lost.

    Args:
        config: content of the source's config.json.
        stored: the source's tensors; their type is the model's when the config does not say.
        src: named in errors.
    """
    where = src / "config.json"
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelDirectoryError(
            f"{where}: the weights are quantised ({method}); only float weights can be converted. "
            "Use the model's original directory."
        )
    out = {
        key: value for key, value in config.items() if key not in ("torch_dtype", "transformers_version", "auto_map")
    }
    dtype = config.get("torch_dtype") or config.get("dtype")
    if dtype is None:
        codes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        dtype = codes.get(next(iter(stored.values())).dtype, "float32")
    out["dtype"] = str(dtype).removeprefix("torch.")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if config.get("head_dim") not in (None, hidden // heads if heads and hidden else None):
        raise ModelDirectoryError(
            f"{where}: head_dim is {config['head_dim']}; "
            f"only hidden_size / num_attention_heads = {hidden // heads} works."
        )
    if "max_position_embeddings" in config:
        out["seq_length"] = config["max_position_embeddings"]
    return out | _convert_rope(out, where)


def _convert_rope(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Translate position scaling; transformers 5 keeps theta and scaling together in ``rope_parameters``."""
    together = config.pop("rope_parameters", None) or {}
    scaling = config.pop("rope_scaling", None) or together
    theta = together.get("rope_theta", config.get("rope_theta"))
    entries: dict[str, Any] = {} if theta is None else {"rope_theta": float(theta)}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ModelDirectoryError(f"{where}: position scaling {kind!r} is not covered. Known: {', '.join(ROPE_TYPES)}.")
    if kind == "llama3":
        entries["rope_scaling"] = {key: value for key, value in scaling.items() if key != "rope_theta"}
    elif kind != "default":
        entries["rope_scaling_type"] = {"linear": "linear", "dynamic": "dynamic_ntk"}[kind]
        entries["rope_scaling_factor"] = float(scaling["factor"])
    return entries


def name_pairs(family: Family, config: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """List the tensors of a model in both layouts, by paddlenlp's own mapping.

    Args:
        family: its row.
        config: content of config.json.

    Returns:
        (Hugging Face name, Paddle name, whether the matrix is transposed) for every tensor.

    Raises:
        ModelDirectoryError: the family's mapping does more than rename and transpose.
    """
    import paddlenlp.transformers as zoo

    model_class = getattr(zoo, family.hf_architecture)
    full = model_class.config_class.from_dict({**config, "architectures": [family.hf_architecture]})
    mappings = model_class._get_name_mappings(full)
    if not family.hf_import or any(mapping.action not in (None, "transpose") for mapping in mappings):
        raise ModelDirectoryError(
            f"Models of the family {family.name} cannot be converted from or to Hugging Face yet."
        )
    return [(m.source_name, m.target_name, m.should_transpose()) for m in mappings]


def paddle_tensors(
    family: Family, config: dict[str, Any], stored: dict[str, StoredTensor], src: Path
) -> dict[str, NewTensor]:
    """Name and orient the tensors of a Hugging Face directory as Paddle does.

    Raises:
        ModelDirectoryError: tensors are missing, or are there that the model has no place for.
    """
    pairs = [pair for pair in name_pairs(family, config) if not pair[0].endswith(IGNORED_ENDINGS)]
    known = {source for source, _, _ in pairs}
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings", False) else set()
    extra = sorted(name for name in stored if name not in known | tied and not name.endswith(IGNORED_ENDINGS))
    missing = sorted(known - set(stored))
    for names, verb in ((extra, "holds"), (missing, "lacks")):
        if names:
            rest = ", ..." if len(names) > 3 else ""
            raise ModelDirectoryError(
                f"{src} {verb} {len(names)} tensors that {'have no place in' if verb == 'holds' else 'belong to'} "
                f"a {family.name} model here: {', '.join(names[:3])}{rest}."
            )
    out = {}
    for source, target, transposed in pairs:
        tensor = stored[source]
        if transposed:
            out[target] = NewTensor(tensor.dtype, tensor.shape[::-1], lambda t=tensor: t.load().T)
        else:
            out[target] = NewTensor(tensor.dtype, tensor.shape, tensor.load)
    return out
