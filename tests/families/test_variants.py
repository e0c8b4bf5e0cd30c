"""Forms of BLOOM, GPT, OPT and Qwen 1 that their tiny models do not have: saved, trained, merged, resumed, loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.checkpoints.merge_lora import merge_lora
from paddlesft.models import load_tokenizer
from paddlesft.models.load import load_model, quiet_paddlenlp, save_model_directory, without_second_names
from tests.families.tuning_runs import METHODS, OTHER_ROWS, run, write_rows
from tests.models.decoders.proofs import logits_alone, rows_of, small
from tests.tiny_families import write_tokenizer

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt, fused qkv": ("gpt", {"fuse_attention_qkv": True}),
    "gpt, config says untied": ("gpt", {"tie_word_embeddings": False}),
    "opt, like 350m": ("opt", {"word_embed_proj_dim": 32, "normalize_before": False}),
    "bloom, heads no power of two": ("bloom", {"hidden_size": 48, "n_head": 6}),
    "qwen, fused ffn": ("qwen", {"fuse_attention_ffn": True}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a variant's model directory with a .pdparams file, as PaddleNLP saves models unless told otherwise."""

    def write(name: str) -> Path:
        family, overrides = VARIANTS[name]
        path = tmp_path_factory.mktemp(family) / "base"
        path.mkdir()
        write_tokenizer(family, path)
        tokenizer = load_tokenizer(path)
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        known = {key: value for key, value in ids.items() if value is not None}
        model = small(family, **{**overrides, **known, "vocab_size": len(tokenizer)})
        with quiet_paddlenlp():
            model.save_pretrained(str(path), state_dict=without_second_names(model), safe_serialization=False)
        return path

    return write


def logits(directory: Path) -> np.ndarray:
    return logits_alone(load_model(directory), rows_of(9)[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_trained_merged_resumed_and_loaded(name: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    directory, data = base(name), write_rows(tmp_path / "rows.json", OTHER_ROWS)
    assert list(directory.glob("*.pdparams"))
    (tmp_path / "again").mkdir()
    save_model_directory(load_model(directory), directory, tmp_path / "again")
    np.testing.assert_array_equal(logits(tmp_path / "again"), logits(directory))

    run(directory, data, tmp_path / "lora", *METHODS["lora"], "max_steps=2")
    report = merge_lora(None, tmp_path / "lora", tmp_path / "merged")
    assert report.comparison.passed and report.effect > 0.1

    steps = [*METHODS["full"], "max_steps=2"]
    run(directory, data, tmp_path / "full", *steps, "save_strategy=steps", "save_steps=1")
    checkpoint = tmp_path / "full" / "checkpoint-1"
    run(directory, data, tmp_path / "resumed", *steps, f"resume_from_checkpoint={checkpoint}")
    found = logits(tmp_path / "resumed")
    np.testing.assert_array_equal(found, logits(tmp_path / "full"))
    assert np.abs(found - logits(directory)).max() > 0.1
