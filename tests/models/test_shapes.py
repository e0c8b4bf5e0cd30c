"""Weights of other sizes than their config says: refused wherever they come from, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import read_config
from paddlesft.models.gguf import import_gguf
from paddlesft.models.hugging_face import convert_hugging_face
from paddlesft.models.load import load_model
from paddlesft.models.shapes import expected_shapes
from paddlesft.models.stored import stored_weights
from tests.models import tiny_architectures
from tests.models.tiny_gguf import HIDDEN, INNER, TOKENS, tiny_weights, write_tiny_gguf, write_tiny_hf
from tests.tiny_families import FAMILY_FIXTURES


@pytest.mark.parametrize("family", FAMILY_FIXTURES)
def test_a_config_says_the_shapes_of_its_models_weights(family: str, tiny_family: Callable[[str], Path]) -> None:
    directory = tiny_family(family)
    stored = {name: tuple(tensor.shape) for name, tensor in stored_weights(directory).items()}
    expected = expected_shapes(read_config(directory))
    assert {name: expected[name] for name in stored} == stored and len(stored) >= 15


def test_a_gguf_file_of_other_sizes_than_its_keys_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), extra={"feed_forward_length": INNER * 2})
    with pytest.raises(ModelDirectoryError) as caught:
        import_gguf(path, tmp_path / "out")
    assert str(caught.value).startswith(
        f"{path}: 6 of 21 weights have other sizes than its metadata say: llama.layers.0.mlp.gate_proj.weight is "
        f"[{HIDDEN}, {INNER}] instead of [{HIDDEN}, {INNER * 2}], "
    )
    assert str(caught.value).endswith(", .... They do not belong together: get the model again.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", tiny_architectures.ARCHITECTURES)
def test_one_odd_weight_of_a_gguf_file_is_enough(architecture: str, tmp_path: Path) -> None:
    weights = tiny_architectures.ARCHITECTURES[architecture].weights()
    norm = next(name for name, array in weights.items() if array.ndim == 1)
    path = tiny_architectures.write_converted(
        tmp_path / "m.gguf", architecture, weights | {norm: np.ones(HIDDEN - 1, np.float32)}
    )
    with pytest.raises(
        ModelDirectoryError, match=rf": 1 of \d+ weights .* is \[{HIDDEN - 1}\] instead of \[{HIDDEN}\]"
    ):
        import_gguf(path, tmp_path / "out")


def test_a_gguf_file_without_heads_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", tiny_weights(), extra={"attention.head_count": 0})
    with pytest.raises(ModelDirectoryError, match=r"hidden size of 32, 0 heads and 2 key/value heads .* 1 or more"):
        import_gguf(path, tmp_path / "out")


def test_a_hugging_face_directory_of_other_sizes_is_refused(tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "hf", tiny_weights(), vocab_size=len(TOKENS) + 4)
    with pytest.raises(ModelDirectoryError) as caught:
        convert_hugging_face(source, tmp_path / "out")
    found, wanted = [len(TOKENS), HIDDEN], [len(TOKENS) + 4, HIDDEN]
    assert f"2 of 21 weights have other sizes than its config.json says: llama.embed_tokens.weight is {found} " in str(
        caught.value
    )
    assert f"instead of {wanted}, " in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pdparams"])
def test_a_model_directory_of_other_sizes_is_refused(pickled: bool, tiny_llama: Path, tmp_path: Path) -> None:
    import paddle

    directory = tmp_path / "m"
    shutil.copytree(tiny_llama, directory)
    if pickled:
        state = {name: paddle.to_tensor(tensor.make()) for name, tensor in stored_weights(tiny_llama).items()}
        (directory / "model.safetensors").unlink()
        paddle.save(state, str(directory / "model_state.pdparams"))
    config = read_config(directory)
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ModelDirectoryError) as caught:
        load_model(directory)
    assert str(caught.value).startswith(f"{directory}: 6 weights have other sizes than its config.json says: llama.")
    assert "proj.weight is [64, 128] instead of [64, 96], " in str(caught.value)
