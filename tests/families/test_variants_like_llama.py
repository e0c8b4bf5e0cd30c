"""Forms of LLaMA, Qwen2, Mistral and Gemma that their tiny models do not have: tied heads, positions, windows, heads.

Each goes the whole way: full fine-tuning, LoRA and a prefix on the result, the merge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from tests.families.tuning_runs import answers, tune
from tests.tiny_families import write_tiny_family

GREEDY = SamplingOptions(max_new_tokens=48)
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, 3.1's positions": ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE}),
    "llama, tied, all heads with keys of their own": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "mistral, window": ("mistral", {"sliding_window": 8}),
    "gemma, like 2b": ("gemma", {"num_key_value_heads": 1}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_tuned_by_every_method(name: str, tmp_path: Path) -> None:
    family, values = VARIANTS[name]
    base = write_tiny_family(family, tmp_path / "base", **values)
    full = tune(base, "full", tmp_path / "full")
    lora, prefix = (tune(full.directory, method, tmp_path / method) for method in ("lora", "prefix"))
    for tuned in (full, lora, prefix):
        for key, value in values.items():
            assert getattr(tuned.loaded.model.config, key) == value
        assert [reply.text for reply in tuned.generate(GREEDY)] == list(tuned.rows.values())
    assert merge_lora(None, lora.directory, tmp_path / "merged").comparison.passed
    replies = answers(load_for_inference(tmp_path / "merged"), lora.prompts(), GREEDY)
    assert [reply.text for reply in replies] == list(lora.rows.values())
