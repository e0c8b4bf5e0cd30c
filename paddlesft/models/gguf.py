"""GGUF files of the llama architecture -> a model directory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The weights are dequantised to float32 by the
``gguf`` package. llama.cpp stores the rows of Q and K interleaved for its rotary embedding; that is undone here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.directories import new_directory, write_json
from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.models.gguf_tokenizer import write_tokenizer
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.weights import DTYPE, PADDLE_LAYOUT, NewTensor, write_weights

logger = logging.getLogger("paddlesft")

IMPORT_VERSION = 1  # raise when the same file would give another directory: cached imports are then made again
ARCHITECTURE = "llama"
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OTHER_TENSORS = {
    "token_embd.weight": "llama.embed_tokens.weight",
    "output_norm.weight": "llama.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's long-context scaling; becomes a config entry, not a weight
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUFFile:
    """An open GGUF file: metadata by key, tensors by name, errors that name the file."""

    def __init__(self, path: str | Path) -> None:
        """Open and check a file.

        Raises:
            EnvironmentProblem: the ``gguf`` package is not installed.
            ModelDirectoryError: there is no such file, it is no GGUF, or it is damaged.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelDirectoryError(f"{self.path} is not a file. Give the path of a .gguf file.")
        with self.path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelDirectoryError(f"{self.path} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'.")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise EnvironmentProblem("Reading GGUF files needs the gguf package. Run: pip install gguf") from error
        try:
            reader = GGUFReader(self.path)
            self.fields = {key: field.contents() for key, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the reader has no errors of its own: whatever numpy meets in a damaged file
            raise ModelDirectoryError(
                f"{self.path} is damaged or incomplete ({type(error).__name__}: {error}). Download or copy it again."
            ) from error
        self.architecture = self.fields.get("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own keys (``context_length`` for ``llama.context_length``)."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """Return a value, or raise naming the key that the file lacks."""
        value = self.fields.get(key) if "." in key and key in self.fields else self.get(key)
        if value is None:
            raise ModelDirectoryError(
                f"{self.path} lacks the key {self.architecture}.{key}; the model is not complete."
            )
        return value

    def array(self, name: str) -> np.ndarray:
        """Return a tensor dequantised to float32, in torch's orientation."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ModelDirectoryError(
                f"{self.path}: tensor {name} is stored as {tensor.tensor_type.name}, which the gguf package cannot "
                "dequantise. Use a file of another quantisation (Q4_K_M, Q8_0, F16 ...)."
            ) from error


def import_gguf(src: str | Path, dst: str | Path, overwrite: bool = False, dtype: str | None = None) -> Path:
    """Turn a GGUF file into a model directory, complete or not at all.

    Args:
        src: a ``.gguf`` file of the llama architecture.
        dst: the directory to create.
        overwrite: replace ``dst`` when it has content.
        dtype: float32, bfloat16 or float16; None keeps a 16-bit file's own and takes float32 for quantised ones.

    Returns:
        ``dst``.

    Raises:
        ModelDirectoryError: the file is damaged, of another architecture, or holds something that cannot be kept.
        UserError: ``dst`` has content and ``overwrite`` is false.
    """
    with new_directory(dst, overwrite=overwrite) as scratch:
        write_gguf_model(src, scratch, dtype=dtype)
    return Path(dst)


def write_gguf_model(
    src: str | Path, directory: Path, source_name: str | None = None, dtype: str | None = None
) -> None:
    """Fill an empty directory with the model of a GGUF file (see ``import_gguf``).

    Args:
        src: the file.
        directory: an empty scratch directory.
        source_name: what the provenance calls the source; the file's path when None.
        dtype: as for ``import_gguf``.
    """
    gguf = GGUFFile(src)
    dtype = dtype or matrix_dtype(gguf)
    config = model_config(gguf, dtype)
    tensors = {
        name: NewTensor(DTYPE[dtype], shape, make)
        for name, (shape, make) in sorted(paddle_tensors(gguf, config).items())
    }
    write_json(directory / "config.json", config)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    write_json(directory / "generation_config.json", tokens)
    write_tokenizer(gguf, directory)
    write_weights(directory, tensors, PADDLE_LAYOUT)
    stored = sorted({tensor.tensor_type.name for tensor in gguf.tensors.values()})
    write_provenance(
        directory,
        kind="model",
        source={
            "name": source_name or str(gguf.path.resolve()),
            "format": "gguf",
            "title": gguf.fields.get("general.name"),
            "license": gguf.fields.get("general.license"),
            "stored_types": stored,
        },
        dtype=dtype,
        fingerprint=fingerprint(directory),
    )
    logger.info("imported %s: %d tensors (%s) as %s", gguf.path, len(tensors), ", ".join(stored), dtype)


def matrix_dtype(gguf: GGUFFile) -> str:
    """Return the type in which a file's matrices lose nothing: its own 16-bit type, else float32."""
    types = {tensor.tensor_type.name for tensor in gguf.tensors.values() if len(tensor.shape) == 2}
    return {"F16": "float16", "BF16": "bfloat16"}.get(types.pop(), "float32") if len(types) == 1 else "float32"


def model_config(gguf: GGUFFile, dtype: str = "float32") -> dict[str, Any]:
    """Make config.json's content from a file's metadata; nothing is assumed that the file says.

    Raises:
        ModelDirectoryError: another architecture, a missing key, or a feature that the llama model here does not have.
    """
    if gguf.architecture != ARCHITECTURE:
        raise ModelDirectoryError(
            f"{gguf.path} has the architecture {gguf.architecture!r}. Import covers: {ARCHITECTURE}. "
            "Other models: use their Hugging Face directory or hub name."
        )
    heads = gguf.require("attention.head_count")
    hidden = gguf.require("embedding_length")
    head_dim = hidden // heads
    for key, allowed in (
        ("expert_count", (None, 0)),
        ("attention.key_length", (None, head_dim)),
        ("attention.value_length", (None, head_dim)),
        ("rope.dimension_count", (None, head_dim)),
    ):
        if gguf.get(key) not in allowed:
            raise ModelDirectoryError(
                f"{gguf.path}: {ARCHITECTURE}.{key} is {gguf.get(key)}; the llama model here allows only {allowed[1]}."
            )
    tokens = gguf.fields.get("tokenizer.ggml.tokens")
    rows = int(gguf.tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in gguf.tensors else 0
    if not tokens or len(tokens) != rows:
        raise ModelDirectoryError(
            f"{gguf.path}: the vocabulary has {len(tokens or [])} tokens, the embedding {rows} rows; they must agree."
        )
    context = gguf.require("context_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": hidden,
        "intermediate_size": gguf.require("feed_forward_length"),
        "num_hidden_layers": gguf.require("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get("attention.head_count_kv", heads),
        "max_position_embeddings": context,
        "seq_length": context,
        # stored as float32; rounding to 6 digits gives back the decimal that was meant (1e-05)
        "rms_norm_eps": float(f"{gguf.require('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(gguf.get("rope.freq_base", 10000.0)),
        **rope_scaling(gguf, head_dim),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": gguf.fields.get(
            "tokenizer.ggml.padding_token_id", gguf.fields.get("tokenizer.ggml.eos_token_id")
        ),
        "dtype": dtype,
    }


def rope_scaling(gguf: GGUFFile, head_dim: int) -> dict[str, Any]:
    """Return the config entries of the file's position scaling (none, linear, or Llama 3's)."""
    kind = gguf.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_scaling_type": "linear", "rope_scaling_factor": float(gguf.require("rope.scaling.factor"))}
    if kind != "none":
        raise ModelDirectoryError(
            f"{gguf.path}: position scaling {kind!r} is not covered. Known: none, linear, llama3."
        )
    if ROPE_FACTORS not in gguf.tensors:
        return {}
    stored = gguf.array(ROPE_FACTORS)
    entry = {"rope_type": "llama3", "factor": float(stored.max()), **LLAMA3_ROPE}
    expected = llama3_factors(head_dim, float(gguf.get("rope.freq_base", 10000.0)), entry)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise ModelDirectoryError(f"{gguf.path}: the factors in {ROPE_FACTORS} do not follow Llama 3's formula.")
    return {"rope_scaling": entry}


def llama3_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """Return by what Llama 3.1 divides each rotary frequency, [head_dim / 2] (Llama 3 report, section 3.4.3)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    context = scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def paddle_tensors(
    gguf: GGUFFile, config: dict[str, Any]
) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """Name every weight as PaddleNLP does; arrays are made when they are asked for.

    Returns:
        name -> (shape in Paddle's layout, function that makes the float32 array).

    Raises:
        ModelDirectoryError: the file holds a tensor that has no place in the model, or lacks one.
    """
    found: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
    unknown = []
    for name, tensor in gguf.tensors.items():
        if name == ROPE_FACTORS:
            continue
        parts = name.split(".")
        block = parts[0] == "blk" and len(parts) == 4 and parts[2] in BLOCK_TENSORS and parts[3] == "weight"
        if not block and name not in OTHER_TENSORS:
            unknown.append(name)
            continue
        target = f"llama.layers.{parts[1]}.{BLOCK_TENSORS[parts[2]]}.weight" if block else OTHER_TENSORS[name]
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(
            parts[2] if block else ""
        )
        shape = tuple(int(n) for n in reversed(tensor.shape))
        transposed = len(shape) == 2 and name != "token_embd.weight"
        found[target] = (shape[::-1] if transposed else shape, _maker(gguf, name, heads, transposed))
    if unknown:
        raise ModelDirectoryError(
            f"{gguf.path} holds {len(unknown)} tensors that the {ARCHITECTURE} architecture does not have here: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}."
        )
    expected = {
        f"llama.layers.{i}.{part}.weight" for i in range(config["num_hidden_layers"]) for part in BLOCK_TENSORS.values()
    }
    expected |= {OTHER_TENSORS["token_embd.weight"], OTHER_TENSORS["output_norm.weight"]}
    missing = sorted(expected - set(found))
    if missing:
        raise ModelDirectoryError(
            f"{gguf.path} lacks {len(missing)} tensors ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})."
        )
    return found


def _maker(gguf: GGUFFile, name: str, heads: int | None, transposed: bool) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = gguf.array(name)
        if heads:
            array = rotate_half_order(array, heads)
        return array.T if transposed else array

    return make


def rotate_half_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring Q or K from llama.cpp's order (rotated pairs side by side) to that of a half-split rotary embedding.

    Args:
        rows: [heads * head_dim, hidden].
        heads: number of heads in ``rows``.

    Returns:
        The same rows in the order of Hugging Face and Paddle.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
