"""OPT's head is its embedding, unless the model's directory holds another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.models import convert_hugging_face, load_model, write_hugging_face
from paddlesft.models.load import save_model_directory
from paddlesft.models.stored import stored_weights
from paddlesft.quirks.opt_tied_head import HEAD

EMBEDDING = "opt.embeddings.word_embeddings.weight"


def small_opt(**entries: Any) -> Any:
    from paddlenlp.transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = OPTConfig(
        **sizes, num_attention_heads=2, word_embed_proj_dim=32, max_position_embeddings=16, dtype="float32", **entries
    )
    paddle.seed(3)
    return OPTForCausalLM(config)


def save(model: Any, path: Path, leave_out: str = "") -> Path:
    path.mkdir()
    state = {name: value for name, value in model.state_dict().items() if name != leave_out}
    model.save_pretrained(str(path), state_dict=state, safe_serialization=True)
    return path


def test_head_that_is_not_stored_is_the_embedding(tmp_path: Path) -> None:
    model = load_model(save(small_opt(), tmp_path / "opt", leave_out=HEAD))
    assert model.lm_head.decoder_weight is model.opt.embeddings.word_embeddings.weight
    assert model.config.tie_word_embeddings
    again = tmp_path / "again"
    again.mkdir()
    save_model_directory(model, tmp_path / "opt", again)
    stored = stored_weights(again)  # written a second time, for PaddleNLP without this module
    np.testing.assert_array_equal(stored[HEAD].make(), stored[EMBEDDING].make())
    reloaded = load_model(again)
    assert reloaded.lm_head.decoder_weight is reloaded.opt.embeddings.word_embeddings.weight


def test_stored_copy_of_the_embedding_is_tied(tmp_path: Path) -> None:
    model = small_opt()
    model.lm_head.decoder_weight.set_value(model.opt.embeddings.word_embeddings.weight)
    loaded = load_model(save(model, tmp_path / "opt"))
    assert loaded.lm_head.decoder_weight is loaded.opt.embeddings.word_embeddings.weight


@pytest.mark.parametrize("safe", [True, False])
def test_head_that_was_trained_apart_is_kept(safe: bool, tmp_path: Path) -> None:
    model = small_opt()
    directory = tmp_path / "opt"
    model.save_pretrained(str(directory), safe_serialization=safe)
    loaded = load_model(directory)
    assert not loaded.config.tie_word_embeddings
    np.testing.assert_array_equal(loaded.lm_head.decoder_weight.numpy(), model.lm_head.decoder_weight.numpy())
    hf = write_hugging_face(directory, tmp_path / "hf")
    assert json.loads((hf / "config.json").read_text())["tie_word_embeddings"] is False
    back = stored_weights(convert_hugging_face(hf, tmp_path / "back"))
    np.testing.assert_array_equal(back[HEAD].make(), model.lm_head.decoder_weight.numpy())
    np.testing.assert_array_equal(back[EMBEDDING].make(), model.opt.embeddings.word_embeddings.weight.numpy())


def test_upstream_ties_nothing() -> None:
    """When this fails, paddlenlp ties the head, and the module can go."""
    model = small_opt(tie_word_embeddings=True)
    assert model.lm_head.decoder_weight is not model.opt.embeddings.word_embeddings.weight
