"""Every family that transformers has too: the same weights give the same logits there and here, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlesft.models import convert_hugging_face, load_model, write_hugging_face
from paddlesft.models.weights import read_weights

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
    assert np.abs(ours - theirs).max() < BOUND * np.abs(theirs).max() < 1e-3


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
