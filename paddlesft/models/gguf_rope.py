"""Position scaling as GGUF files say it -> entries of config.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf_file import INSTEAD, GGUFFile

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's long-context scaling; becomes a config entry, not a weight
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_scaling(gguf: GGUFFile, head_dim: int, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the config entries of the file's position scaling.

    Args:
        gguf: the file.
        head_dim: size of one attention head.
        known: what the model can compute, of ``none``, ``linear`` and ``llama3``.

    Raises:
        ModelDirectoryError: the file asks for something else.
    """
    kind = gguf.get("rope.scaling.type", "none")
    if kind == "none" and ROPE_FACTORS in gguf.tensors:
        kind = "llama3"
    if kind not in known:
        raise ModelDirectoryError(
            f"{gguf.path}: position scaling {kind!r} is not covered. Known: {', '.join(known)}. {INSTEAD}"
        )
    if kind == "linear":
        return {"rope_scaling_type": "linear", "rope_scaling_factor": float(gguf.require("rope.scaling.factor"))}
    return _llama3_entry(gguf, head_dim) if kind == "llama3" else {}


def _llama3_entry(gguf: GGUFFile, head_dim: int) -> dict[str, Any]:
    stored = gguf.array(ROPE_FACTORS)
    entry = {"rope_type": "llama3", "factor": float(stored.max()), **LLAMA3_ROPE}
    expected = llama3_factors(head_dim, float(gguf.get("rope.freq_base", 10000.0)), entry)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise ModelDirectoryError(
            f"{gguf.path}: the factors in {ROPE_FACTORS} do not follow Llama 3's formula. {INSTEAD}"
        )
    return {"rope_scaling": entry}


def llama3_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """Return by what Llama 3.1 divides each rotary frequency, [head_dim / 2] (Llama 3 report, section 3.4.3)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    context = scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
