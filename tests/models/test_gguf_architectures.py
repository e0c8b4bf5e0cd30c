"""Every architecture of the importer computes what transformers computes with the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.gguf import import_gguf
from paddlesft.models.gguf_architectures import ARCHITECTURES as ROWS
from paddlesft.models.weights import TORCH_LAYOUT, NewTensor, write_weights
from tests.models import tiny_architectures
from tests.models.test_against_torch import paddle_logits
from tests.models.tiny_architectures import LAYERS, converted, write_converted

ARCHITECTURES = sorted(tiny_architectures.ARCHITECTURES)
PROMPTS = [[1, 3, 4, 9, 7, 2, 5, 5, 8, 10], [6], list(range(1, 12)) * 5]


def write_hf(directory: Path, name: str, weights: dict[str, np.ndarray]) -> Path:
    directory.mkdir()
    tensors = {key: NewTensor("F32", array.shape, lambda array=array: array) for key, array in weights.items()}
    write_weights(directory, tensors, TORCH_LAYOUT)
    config = tiny_architectures.ARCHITECTURES[name].hf_config | {"torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def torch_logits(oracle: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """transformers' logits by architecture: ``NAME`` from the original weights, ``NAME.gguf`` from the GGUF file."""
    folder = tmp_path_factory.mktemp("torch")
    models = {}
    for name in ARCHITECTURES:
        tiny = tiny_architectures.ARCHITECTURES[name]
        weights = tiny.weights()
        models[name] = str(write_hf(folder / name, name, weights))
        if tiny.transformers_imports:
            models[f"{name}.gguf"] = str(write_converted(folder / f"{name}.gguf", name, weights))
    (folder / "models.json").write_text(json.dumps(models))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    oracle("gguf_logits.py", folder / "models.json", folder / "prompts.json", folder / "logits.npz")
    stored = np.load(folder / "logits.npz")
    return {name: [stored[f"{name}/{i}"] for i in range(len(PROMPTS))] for name in models}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_imported_model_equals_transformers(
    name: str, torch_logits: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    from paddlesft.models import load_model

    weights = tiny_architectures.ARCHITECTURES[name].weights()
    model = load_model(import_gguf(write_converted(tmp_path / "m.gguf", name, weights), tmp_path / "out"))
    ours = paddle_logits(model, PROMPTS)
    assert np.abs(ours[0]).max() > 3
    for number, mine in enumerate(ours):
        for source in {name, f"{name}.gguf"} & set(torch_logits):
            np.testing.assert_allclose(mine, torch_logits[source][number], atol=1e-4, err_msg=source)


def test_every_tensor_of_the_gguf_package_is_known() -> None:
    """What a converter can write for these architectures is imported, or named here with the reason."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

    experts = {f"blk.{{bid}}.ffn_{part}" for part in ("gate_inp", "gate_exps", "down_exps", "up_exps")}
    left_out = {
        "llama": experts | {"rope_freqs", "blk.{bid}.attn_rot_embd"},  # a config entry; files of 2023
        "qwen2": {"rope_freqs"},  # no qwen2 has position factors, and its model here no position scaling
    }
    assert len(ROWS) == len(ARCHITECTURES)
    for row in ROWS:
        code = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == row.name)
        given = {TENSOR_NAMES[tensor] for tensor in MODEL_TENSORS[code]}
        assert set(row.tensors) == given - {"output"} - left_out.get(row.name, set()), row.name


def test_what_a_file_does_not_say_has_its_default(tmp_path: Path) -> None:
    """Without a count of key/value heads all heads have their own, without a frequency base it is 10000."""
    weights = tiny_architectures.ARCHITECTURES["qwen2"].weights()
    for name in [name for name in weights if ".k_proj." in name or ".v_proj." in name]:
        weights[name] = weights[name.replace(".k_proj.", ".q_proj.").replace(".v_proj.", ".q_proj.")]
    file = write_converted(tmp_path / "m.gguf", "qwen2", weights, attention__head_count_kv=None, rope__freq_base=None)
    config = json.loads((import_gguf(file, tmp_path / "out") / "config.json").read_text())
    assert (config["num_key_value_heads"], config["rope_theta"]) == (4, 10000.0)
    assert (config["architectures"], config["model_type"]) == (["Qwen2ForCausalLM"], "qwen2")


@pytest.mark.parametrize("name", ["bloom", "gpt2"])
def test_embedding_stored_twice(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Converters of 2023 and 2024 stored the output matrix of tied models a second time; quantised, they differ."""
    from paddlesft.models.weights import read_weights

    weights = tiny_architectures.ARCHITECTURES[name].weights()
    embedding = converted(name, weights)["token_embd.weight"]

    def imported(tmp: Path, output: np.ndarray, stored: dict[str, str] | None = None) -> np.ndarray:
        file = write_converted(tmp / "m.gguf", name, weights | {"lm_head.weight": output}, stored or "F32")
        tensors, _ = read_weights(import_gguf(file, tmp / "out"))
        assert "lm_head.weight" not in tensors
        return next(t.load() for key, t in tensors.items() if key.endswith("word_embeddings.weight"))

    (tmp_path / "same").mkdir()
    np.testing.assert_array_equal(imported(tmp_path / "same", embedding), embedding)
    assert not caplog.records

    (tmp_path / "quantised").mkdir()
    found = imported(tmp_path / "quantised", embedding, {"token_embd.weight": "Q4_0", "output.weight": "Q8_0"})
    assert 0 < np.abs(found - embedding).max() < 0.04  # 8 bits: 4 bits would be ten times as far
    assert "stores the embedding twice, as Q4_0 and as Q8_0" in caplog.text

    for case, stored in (("other", "F32"), ("other quantised", "Q8_0")):
        (tmp_path / case).mkdir()
        with pytest.raises(ModelDirectoryError, match=f"differs from token_embd.weight; the {name} model here has one"):
            imported(tmp_path / case, embedding[::-1], {"output.weight": stored})


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "epsilon": (
        "gpt2", {"attention__layer_norm_epsilon": 1e-6}, r"gpt2.attention.layer_norm_epsilon is 1e-06; .* only 1e-05"
    ),
    "inner size": ("bloom", {"feed_forward_length": 64}, r"bloom.feed_forward_length is 64; .* allows only 128"),
    "scaling": ("qwen2", {"rope__scaling__type": "linear"}, r"position scaling 'linear' is not covered. Known: none"),
    "heads": ("bloom", {"attention__head_count": 5}, r"hidden size 32 cannot be shared out to 5 heads"),
    "by layer": ("llama", {"attention__head_count_kv": [2, 4]}, r"head_count_kv differs from layer to layer"),
    "no head size": ("gemma", {"attention__key_length": None}, r"lacks the key gemma.attention.key_length"),
    "key heads": ("llama", {"attention__head_count_kv": 3}, r"4 heads cannot be shared out to 3 key/value heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, tmp_path: Path) -> None:
    name, changes, message = REFUSALS[case]
    file = write_converted(tmp_path / "m.gguf", name, tiny_architectures.ARCHITECTURES[name].weights(), **changes)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        import_gguf(file, tmp_path / "out")
    assert "Hugging Face directory" in str(caught.value)  # what to do next
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_tensors_as_from_hugging_face(name: str, tmp_path: Path) -> None:
    """The two importers know nothing of each other and write the same model."""
    from paddlesft.models import convert_hugging_face
    from paddlesft.models.weights import read_weights

    weights = tiny_architectures.ARCHITECTURES[name].weights()
    theirs, _ = read_weights(convert_hugging_face(write_hf(tmp_path / "hf", name, weights), tmp_path / "paddle"))
    ours, _ = read_weights(import_gguf(write_converted(tmp_path / "m.gguf", name, weights), tmp_path / "out"))
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        rounded = 1.2e-7 if name == "gemma" and "norm" in key else 0  # 1 is added and taken away again
        np.testing.assert_allclose(tensor.load(), theirs[key].load(), atol=rounded, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_and_unknown_tensors_are_named(name: str, tmp_path: Path) -> None:
    weights = tiny_architectures.ARCHITECTURES[name].weights()
    last = next(key for key in weights if f".{LAYERS - 1}." in key)
    lost = next(iter(converted(name, {last: weights[last]})))
    file = write_converted(tmp_path / "l.gguf", name, {key: w for key, w in weights.items() if key != last})
    with pytest.raises(ModelDirectoryError, match=rf"lacks 1 tensors of the {name} architecture: {lost}\."):
        import_gguf(file, tmp_path / "out")
    fewer = write_converted(tmp_path / "f.gguf", name, weights, block_count=LAYERS - 1)
    with pytest.raises(ModelDirectoryError, match=rf"that the {name} architecture does not have here: blk\.1\."):
        import_gguf(fewer, tmp_path / "out")


def test_end_of_turn_ends_replies_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_architectures.VOCABULARY, "eot_token_id", 5)
    file = write_converted(tmp_path / "m.gguf", "qwen2", tiny_architectures.ARCHITECTURES["qwen2"].weights())
    out = import_gguf(file, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
