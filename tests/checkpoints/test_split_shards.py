"""Models and adapters are split as PaddleNLP splits them, or a message says why they cannot be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from paddlesft.checkpoints import split_shards as module
from paddlesft.checkpoints.adapter import read_adapter
from paddlesft.checkpoints.merge_shards import merge_shards
from paddlesft.checkpoints.split_shards import split_shards
from paddlesft.errors import CheckpointError
from paddlesft.models import read_provenance
from paddlesft.models.families import FAMILIES, family_of
from paddlesft.models.stored import load_pdparams, stored_weights
from tests.checkpoints.adapters import write_adapter
from tests.checkpoints.shards import write_even_family, write_model_shards

NAMES = [family.name for family in FAMILIES if family.tensor_parallel]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> directory of its tiny model with a vocabulary that 8 divides."""
    root = tmp_path_factory.mktemp("even")
    return cache(lambda name: write_even_family(name, root / name))


@pytest.mark.parametrize("name", NAMES)
def test_as_paddlenlp_splits(name: str, even: Callable[[str], Path], tmp_path: Path) -> None:
    """Every file is that of PaddleNLP's ``convert_tensor_parallel``, and merging gives the model back."""
    report = split_shards(even(name), tmp_path / "mine", tensor_parallel_degree=2)
    write_model_shards(even(name), tmp_path / "theirs", tp=2)
    assert report.files == ["model_state.tp00.pdparams", "model_state.tp01.pdparams"] and report.divided > 8
    for file in report.files:
        mine = load_pdparams(tmp_path / "mine" / file, return_numpy=True)
        theirs = load_pdparams(tmp_path / "theirs" / file, return_numpy=True)
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=key)
        assert len(mine) > 15 and set(mine) <= set(theirs)
    assert json.loads((tmp_path / "mine/config.json").read_text())["tensor_parallel_degree"] == 2
    merge_shards(tmp_path / "mine", tmp_path / "merged")
    wanted = stored_weights(even(name))
    for key, tensor in stored_weights(tmp_path / "merged").items():
        assert tensor.make().tobytes() == wanted[key].make().tobytes(), key


@pytest.mark.parametrize("name", [family.name for family in FAMILIES if family.pipe_class])
def test_stages(name: str, even: Callable[[str], Path], tmp_path: Path) -> None:
    report = split_shards(even(name), tmp_path / "split", 2, 2, ending="safetensors")
    assert report.files[1:3] == ["model.tp00_pp01.safetensors", "model.tp01_pp00.safetensors"]
    family = next(family for family in FAMILIES if family.name == name)
    assert json.loads((tmp_path / "split/config.json").read_text())["architectures"] == [family.pipe_class]
    merge_shards(tmp_path / "split", tmp_path / "merged")
    wanted = stored_weights(even(name))
    for key, tensor in stored_weights(tmp_path / "merged").items():
        assert tensor.make().tobytes() == wanted[key].make().tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_adapters(name: str, even: Callable[[str], Path], tmp_path: Path) -> None:
    """Here the base is found by the adapter's provenance."""
    lora = write_adapter(tmp_path / "lora", even(name), str(even(name)), lora_bias="all")
    pp = 2 if family_of(json.loads((even(name) / "config.json").read_text())).pipe_class else 1
    report = split_shards(lora, tmp_path / "split", 2, pp)
    assert report.kind == "lora" and report.divided >= len(read_adapter(lora).updated) and len(report.files) == 2 * pp
    merged = merge_shards(tmp_path / "split", tmp_path / "merged")
    assert merged.kind == "lora" and merged.joined == report.divided  # biases are trained too
    wanted, found = read_adapter(lora), read_adapter(tmp_path / "merged")
    assert set(wanted.tensors) == set(found.tensors) and found.config["tensor_parallel_degree"] == 1
    for key, tensor in wanted.tensors.items():
        assert tensor.make().tobytes() == found.tensors[key].make().tobytes(), key
    assert read_provenance(tmp_path / "merged")["base"]["path"] == str(even(name).resolve())


def test_an_adapter_without_a_known_base(even: Callable[[str], Path], tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", even("llama"))
    with pytest.raises(CheckpointError) as caught:
        split_shards(lora, tmp_path / "split", 2)
    assert str(caught.value) == (
        f"{lora} has no config.json and does not name its base model, whose shapes are needed. "
        "Give it with --base_model_name_or_path."
    )
    split_shards(lora, tmp_path / "split", 2, base=even("llama"))
    with pytest.raises(CheckpointError, match=r"split has no config.json and does not name its base model"):
        merge_shards(tmp_path / "split", tmp_path / "merged")
    with pytest.raises(CheckpointError) as caught:  # another base, whose layers are wider
        wide = write_even_family("llama", tmp_path / "wide", hidden_size=128)
        merge_shards(tmp_path / "split", tmp_path / "merged", base=wide)
    found = "q_proj.lora_A is [64, 4], from 2 ranks with [64, 4] (lora_model_state.tp00.pdparams); the model makes it "
    assert found + "[128, 4]" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"lora_A, but the model of config.json has no llama.layers.0"):
        merge_shards(tmp_path / "split", tmp_path / "merged", base=even("qwen2"))
    merge_shards(tmp_path / "split", tmp_path / "merged", base=even("llama"))


def test_what_is_refused(even: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, out = even("llama"), tmp_path / "out"
    odd = write_even_family("llama", tmp_path / "odd", intermediate_size=130)
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix/prefix_config.json").write_text("{}")
    for source, degrees, message in (
        (llama, (1, 1), "Nothing to split: tensor_parallel_degree and pipeline_parallel_degree are both 1. Set one"),
        (llama, (3, 1), "num_attention_heads is 4, which tensor_parallel_degree 3 does not divide"),
        (llama, (1, 3), "num_hidden_layers is 2, which pipeline_parallel_degree 3 does not divide"),
        (odd, (4, 1), "mlp.gate_proj.weight is [64, 130], which cannot be divided by 4"),
        (even("bloom"), (1, 2), "family bloom has no pipeline parallelism in PaddleNLP. Nothing was written."),
        (tmp_path / "prefix", (2, 1), "prefix is a prefix, which every rank loads whole: there is nothing to split."),
    ):
        with pytest.raises(CheckpointError) as caught:
            split_shards(source, out, *degrees)
        assert message in str(caught.value), str(caught.value)
    with pytest.raises(CheckpointError, match=r"out lies in .*llama itself. Choose another directory."):
        split_shards(llama, llama / "out", 2)
    row = dataclasses.replace(next(family for family in FAMILIES if family.name == "llama"), tensor_parallel=False)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"family llama has no tensor parall"):
        patch.setattr(module, "family_of", lambda _: row)
        split_shards(llama, out, 2)
    whole = module.write_pdparams
    wrong = {"llama.layers.0.self_attn.q_proj.weight": lambda: np.zeros((64, 32), np.float32)}
    monkeypatch.setattr(module, "write_pdparams", lambda path, arrays: whole(path, arrays | wrong))
    with pytest.raises(CheckpointError, match=r"q_proj.weight does not come back from its parts, so nothing was"):
        split_shards(llama, out, 2)
    assert not out.exists()
