"""Every family that transformers has too: the same weights give the same logits there and here, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models import convert_hugging_face, load_model, write_hugging_face
from paddlesft.models.provenance import fingerprint
from paddlesft.models.weights import PADDLE_LAYOUT, TORCH_LAYOUT, NewTensor, read_weights, write_weights

# tests/oracle/hf_models.py makes them; every parameter is random, those of norms and biases too.
MODELS = (
    "bloom", "bloom-three-heads", "gemma", "gemma-exact-gelu", "gemma-wide-heads", "gpt2", "gpt2-narrow", "llama",
    "mistral", "mistral-window", "opt", "opt-projected", "opt-untied-gelu", "qwen2", "qwen2-tied",
)  # fmt: skip
BORN_IN_PADDLE = ("bloom", "gemma", "gpt", "llama", "mistral", "opt", "qwen2")  # tests/tiny_families.py makes them
# Of the largest logit. Both sum float32 in different orders; the largest seen is 4e-6.
BOUND = 2e-5
# Entries that come back in other words: null as what it stands for, gelu_new as its other name.
REWORDED = {"n_inner", "hidden_activation", "activation_function"}


@pytest.fixture(scope="module")
def torch_models(oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of transformers with their logits."""
    out = tmp_path_factory.mktemp("torch")
    assert oracle("hf_models.py", "make", out) == list(MODELS)
    return out


@pytest.fixture(scope="module")
def imported(torch_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> that model in Paddle's layout."""
    out = tmp_path_factory.mktemp("paddle")

    def directory(name: str) -> Path:
        return out / name if (out / name).is_dir() else convert_hugging_face(torch_models / name, out / name)

    return directory


@pytest.fixture(scope="module")
def exported(
    imported: Callable[[str], Path],
    torch_models: Path,
    tiny_family: Callable[[str], Path],
    oracle: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Directories written by this project, with what transformers computes from them: all in one process."""
    out = tmp_path_factory.mktemp("exported")
    made = [write_hugging_face(imported(name), out / name) for name in MODELS]
    made += [write_hugging_face(tiny_family(name), out / f"born-{name}") for name in BORN_IN_PADDLE]
    oracle("hf_models.py", "logits", out, torch_models / "inputs.npz", *made)
    return out


def logits(directory: Path, inputs: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a model's logits of all tokens but padding, [tokens, v]: from the padded batch, and row by row."""
    import paddle

    from paddlesft.models.decoders import decoder_of

    given = np.load(inputs)
    decoder = decoder_of(load_model(directory))

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        ids, mask = paddle.to_tensor(ids), paddle.to_tensor(mask)
        with paddle.no_grad():
            hidden, _ = decoder.run(ids, mask=mask, position_ids=decoder.positions(ids, mask))
            return decoder.logits(hidden).numpy()

    keep = given["mask"].astype(bool)
    single = [run(ids[kept][None], np.ones((1, kept.sum()), np.int64))[0] for ids, kept in zip(given["ids"], keep)]
    return run(given["ids"], given["mask"])[keep], np.concatenate(single)


def torch_logits(directory: Path, name: str, inputs: Path) -> np.ndarray:
    return np.load(directory / f"{name}.npy")[np.load(inputs)["mask"].astype(bool)]


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < min(BOUND * np.abs(theirs).max(), 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_imported_logits(name: str, imported: Callable[[str], Path], torch_models: Path) -> None:
    inputs = torch_models / "inputs.npz"
    theirs = torch_logits(torch_models, name, inputs)
    for ours in logits(imported(name), inputs):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, exported: Path, torch_models: Path) -> None:
    before, after = read_weights(torch_models / name)[0], read_weights(exported / name)[0]
    assert set(before) == set(after)
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key].load(), tensor.load(), err_msg=key)
    inputs = torch_models / "inputs.npz"
    assert_equal(torch_logits(exported, name, inputs), torch_logits(torch_models, name, inputs))
    old, new = (json.loads((place / name / "config.json").read_text()) for place in (torch_models, exported))
    assert {key for key in new if key in old and new[key] != old[key]} <= REWORDED


@pytest.mark.parametrize("name", BORN_IN_PADDLE)
def test_exported_logits(name: str, exported: Path, torch_models: Path, tiny_family: Callable[[str], Path]) -> None:
    inputs = torch_models / "inputs.npz"
    ours, _ = logits(tiny_family(name), inputs)
    assert_equal(torch_logits(exported, f"born-{name}", inputs), ours)
    again, _ = logits(convert_hugging_face(exported / f"born-{name}", exported / f"again-{name}"), inputs)
    np.testing.assert_array_equal(again, ours)


EMBEDDINGS = {
    "gpt2": "transformer.wte.weight",
    "bloom": "transformer.word_embeddings.weight",
    "opt": "model.decoder.embed_tokens.weight",
}


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("opt", "model.")])
def test_early_checkpoints_name_the_decoder_alone(
    name: str, prefix: str, imported: Callable[[str], Path], torch_models: Path, tmp_path: Path
) -> None:
    stored, _ = read_weights(torch_models / name)
    tensors = {key.removeprefix(prefix): NewTensor(t.dtype, t.shape, t.load) for key, t in stored.items()}
    # what the published GPT-2 files hold besides
    triangle = np.ones((1, 1, 4, 4), np.uint8)
    tensors |= {f"h.0.attn.{key}": NewTensor("U8", triangle.shape, lambda: triangle) for key in ("bias", "masked_bias")}
    tensors["lm_head.weight"] = tensors[EMBEDDINGS[name].removeprefix(prefix)]
    source = tmp_path / "early"
    source.mkdir()
    (source / "config.json").write_text((torch_models / name / "config.json").read_text())
    write_weights(source, tensors, TORCH_LAYOUT)
    assert fingerprint(convert_hugging_face(source, tmp_path / "out")) == fingerprint(imported(name))


@pytest.mark.parametrize("head", ["lm_head.weight", "lm_head.decoder_weight"])
def test_a_head_that_differs_from_a_tied_embedding_is_not_lost(
    head: str, imported: Callable[[str], Path], tmp_path: Path
) -> None:
    stored, _ = read_weights(imported("qwen2-tied"))
    tensors = {key: NewTensor(t.dtype, t.shape, t.load) for key, t in stored.items()}
    embedding = tensors["qwen2.embed_tokens.weight"]
    source = tmp_path / "drifted"
    source.mkdir()
    (source / "config.json").write_text((imported("qwen2-tied") / "config.json").read_text())
    write_weights(source, {**tensors, head: embedding}, PADDLE_LAYOUT)
    write_hugging_face(source, tmp_path / "equal")
    write_weights(source, {**tensors, head: replace(embedding, make=lambda: embedding.make() + 1)}, PADDLE_LAYOUT)
    message = f"says tie_word_embeddings, but {head} differs from qwen2.embed_tokens.weight"
    with pytest.raises(ModelDirectoryError, match=message):
        write_hugging_face(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_fused_projections_are_not_exported(tmp_path: Path) -> None:
    from paddlenlp.transformers import GPTConfig, GPTForCausalLM

    config = GPTConfig(
        vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        fuse_attention_qkv=True, dtype="float32",
    )  # fmt: skip
    GPTForCausalLM(config).save_pretrained(str(tmp_path / "gpt"), safe_serialization=True)
    with pytest.raises(
        ModelDirectoryError, match=r"have no Hugging Face name: .*fuse_attention_qkv.* cannot be exported"
    ):
        write_hugging_face(tmp_path / "gpt", tmp_path / "hf")
