"""Hugging Face directories are converted beside the source; what cannot be kept is refused by name."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.hugging_face import convert_hugging_face, converted
from paddlesft.models.load import paddle_directory
from paddlesft.models.provenance import fingerprint
from paddlesft.models.stored import stored_weights
from paddlesft.models.weights import NewTensor, read_weights, write_weights
from tests.models.test_against_torch import paddle_logits
from tests.models.tiny_gguf import tiny_weights, write_tiny_hf


def tree_hash(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file below a directory."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PADDLESFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_changed_tokenizer_or_template_is_converted_anew(home: Path, tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "hf", tiny_weights())
    made = [converted(source)]
    for name in ("chat_template.jinja", "tokenizer.model", "merges.txt", "tokenizer_config.json"):
        (source / name).write_text("{}")
        made.append(converted(source))
        assert (made[-1] / name).read_text() == "{}"
    assert len(set(made)) == 5
    assert converted(source) == made[-1]


@pytest.mark.parametrize("said", [None, "mlx"])
def test_weights_of_unknown_layout_are_known_by_their_names(said: str | None, home: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    tensors = {name: NewTensor("F32", array.shape, lambda a=array: a) for name, array in weights.items()}
    source = write_tiny_hf(tmp_path / "hf", weights)
    write_weights(source, tensors, said)
    assert paddle_directory(source) == converted(source)

    paddle = converted(source)
    arrays = {name: tensor.make() for name, tensor in stored_weights(paddle).items()}
    tensors = {name: NewTensor("F32", array.shape, lambda a=array: a) for name, array in arrays.items()}
    write_weights(paddle, tensors, said)
    with pytest.raises(
        ModelDirectoryError, match=rf"names of the weights are PaddleNLP's, .* {said!r} instead of 'np'"
    ):
        paddle_directory(paddle)


@pytest.mark.parametrize("shards", [1, 3])
def test_source_is_untouched_and_conversion_is_kept(shards: int, home: Path, tmp_path: Path) -> None:
    from paddlesft.models import load_model, load_tokenizer

    source = write_tiny_hf(tmp_path / "hf", tiny_weights(), shards=shards)
    before = tree_hash(source)
    model = load_model(source)
    with pytest.raises(ModelDirectoryError, match="holds no tokenizer"):
        load_tokenizer(source)
    assert tree_hash(source) == before
    made = converted(source)
    assert made.parent == home / "converted" and made.name.startswith("hf-")
    assert converted(source) == made
    assert len(list((home / "converted").glob("hf-*"))) == 1
    weights = tiny_weights()
    np.testing.assert_array_equal(
        model.llama.layers[1].mlp.up_proj.weight.numpy(), weights["model.layers.1.mlp.up_proj.weight"].T
    )


def test_changed_source_is_converted_again(home: Path, tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "hf", tiny_weights())
    first = converted(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0}))
    second = converted(source)
    assert second != first
    assert json.loads((second / "config.json").read_text())["rope_theta"] == 10000.0


def test_explicit_destination_is_never_inside_the_source(home: Path, tmp_path: Path) -> None:
    source = write_tiny_hf(tmp_path / "hf", tiny_weights())
    out = convert_hugging_face(source, tmp_path / "out")
    assert fingerprint(out) == fingerprint(converted(source))
    before = tree_hash(source)
    for inside in (source, source / "paddle"):
        with pytest.raises(ModelDirectoryError, match="lies inside the source"):
            convert_hugging_face(source, inside)
    assert tree_hash(source) == before


def test_types_are_kept_and_cpu_computes_in_float32(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from paddlesft.models import load_model

    source = write_tiny_hf(tmp_path / "hf", tiny_weights(), stored="BF16", torch_dtype="bfloat16")
    tensors, layout = read_weights(converted(source))
    assert layout == "np" and {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    with caplog.at_level(logging.WARNING, logger="paddlesft"):
        model = load_model(source)
    assert str(model.config.dtype) == "float32"
    assert {str(p.dtype) for p in model.parameters()} == {"paddle.float32"}
    assert "bfloat16 has no CPU kernels; the model is loaded as float32" in caplog.text
    full = paddle_logits(load_model(write_tiny_hf(tmp_path / "full", tiny_weights())), [[1, 3, 4]])[0]
    assert 0 < np.abs(paddle_logits(model, [[1, 3, 4]])[0] - full).max() < 0.05 * np.abs(full).max()


def test_config_fields(home: Path, tmp_path: Path) -> None:
    from paddlesft.models import load_config

    source = write_tiny_hf(tmp_path / "a", tiny_weights(), rope_scaling={"type": "linear", "factor": 2.0})
    config = load_config(converted(source))
    assert (config.rope_scaling_type, config.rope_scaling_factor, config.rope_theta) == ("linear", 2.0, 50000.0)
    assert config.eos_token_id == [2, 5] and config.pad_token_id is None
    assert config.num_key_value_heads == 2 and config.seq_length == config.max_position_embeddings == 128

    newer = {"rope_theta": 7000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    newer |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = load_config(converted(write_tiny_hf(tmp_path / "b", tiny_weights(), rope_parameters=newer)))
    assert config.rope_theta == 7000.0 and config.rope_scaling["rope_type"] == "llama3"


def test_old_buffers_and_a_second_copy_of_the_head_are_dropped(home: Path, tmp_path: Path) -> None:
    weights = tiny_weights(tied=True)
    extra = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    source = write_tiny_hf(tmp_path / "hf", {**weights, **extra}, tie_word_embeddings=True)
    tensors, _ = read_weights(converted(source))
    assert len(tensors) == len(weights) and "lm_head.weight" not in tensors


REFUSALS = {
    "family": ({"model_type": "mamba"}, {}, r"names model_type 'mamba', which no family .* Known: .*llama"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, {}, r"weights are quantised \(gptq\)"),
    "head size": ({"head_dim": 64}, {}, r"head_dim is 64; only hidden_size / num_attention_heads = 8 works"),
    "scaling": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {},
        r"scaling 'yarn' is not .* In a copy of the directory without",
    ),
    "no entry": ({"vocab_size": None}, {}, r"config.json has no vocab_size, which a model of this kind must say"),
    "tensor without a place": (
        {},
        {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)},
        r"holds 1 tensors that have no place in a llama model here: .*q_proj.bias. Is its config.json that of another",
    ),
    "too few layers": ({"num_hidden_layers": 3}, {}, r"lacks 9 tensors that belong to a llama model here: .* again"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_leave_nothing_behind(case: str, home: Path, tmp_path: Path) -> None:
    config, extra, message = REFUSALS[case]
    source = write_tiny_hf(tmp_path / "hf", {**tiny_weights(), **extra}, **config)
    with pytest.raises(ModelDirectoryError, match=message):
        converted(source)
    assert not [path for path in home.rglob("*") if not path.name.endswith(".lock") and path.name != "converted"]


def test_incomplete_and_foreign_directories(home: Path, tmp_path: Path) -> None:
    from paddlesft.models import load_model

    sharded = write_tiny_hf(tmp_path / "sharded", tiny_weights(), shards=3)
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ModelDirectoryError, match=rf"is incomplete: 1 of \d weight files .* missing \({victim.name}\)"):
        load_model(sharded)

    cut = write_tiny_hf(tmp_path / "cut", tiny_weights())
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelDirectoryError, match=r"is truncated: it holds \d+ bytes, its header promises \d+"):
        load_model(cut)

    only_bin = write_tiny_hf(tmp_path / "bin", tiny_weights())
    (only_bin / "model.safetensors").rename(only_bin / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match=r"only pytorch_model.bin, .* is not read here. .*save_pretrained"):
        load_model(only_bin)
