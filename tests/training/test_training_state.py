from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.errors import CheckpointError
from paddlesft.models.weights import read_header
from paddlesft.parallel.division import Division
from paddlesft.training.optimizer_state import _agreed, read_state, write_whole_state
from paddlesft.training.training_state import DIRECTORY, load_random_state, load_training_state
from tests.training.small_runs import small_run


def test_the_state_has_structured_names_and_fits_a_model_made_later(tmp_path: Path) -> None:
    first = small_run(tmp_path / "a", "lora=true", "max_steps=3")
    path = tmp_path / "state.safetensors"
    write_whole_state(first.optimizer, Division(first.model), path)
    stored, _ = read_header(path)
    moments = [key for key in stored if key.endswith("@moment1_0")]
    assert len(moments) == 28 and all("lora_" in key for key in moments)
    # paddle names the parameters of a second model differently: its own state would not fit, and would not say so
    second = small_run(tmp_path / "b", "lora=true", "max_steps=1")
    assert first.optimizer.state_dict().keys() != second.optimizer.state_dict().keys()
    read_state(second.optimizer, Division(second.model), path, whole=True)
    again = tmp_path / "again.safetensors"
    write_whole_state(second.optimizer, Division(second.model), again)
    loaded, _ = read_header(again)
    assert loaded.keys() == stored.keys()
    assert all((loaded[key].load() == stored[key].load()).all() for key in stored)


def test_a_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    lora = small_run(tmp_path / "a", "lora=true", "max_steps=1")
    full = small_run(tmp_path / "b", "max_steps=1")
    path = tmp_path / "state.safetensors"
    write_whole_state(lora.optimizer, Division(lora.model), path)
    with pytest.raises(CheckpointError, match=r"does not fit the weights that this run trains \(no state for llama"):
        read_state(full.optimizer, Division(full.model), path, whole=True)
    write_whole_state(full.optimizer, Division(full.model), path)
    with pytest.raises(CheckpointError, match=r"28 missing, 21 left over\)"):
        read_state(lora.optimizer, Division(lora.model), path, whole=True)


def test_a_checkpoint_without_optimizer_says_what_to_set(tmp_path: Path) -> None:
    keys = ["lora=true", "max_steps=2", "save_strategy=steps", "save_steps=2", "ignore_save_lr_and_optim=true"]
    trainer = small_run(tmp_path, *keys)
    names = {path.name for path in (tmp_path / "checkpoint-2" / DIRECTORY).iterdir()}
    assert names == {"rng_state.pth"}
    with pytest.raises(CheckpointError, match="add ignore_load_lr_and_optim: true"):
        load_training_state(tmp_path / "checkpoint-2", trainer)


def test_random_generators_go_back_to_where_they_were(tmp_path: Path) -> None:
    small_run(tmp_path, "lora=true", "max_steps=1", "save_strategy=steps", "save_steps=1")
    drawn = []
    for _ in range(2):
        assert load_random_state(tmp_path / "checkpoint-1")
        drawn.append(paddle.randn([4]).numpy().tolist())
    assert drawn[0] == drawn[1]
    (tmp_path / "checkpoint-1" / DIRECTORY / "rng_state.pth").unlink()
    assert load_random_state(tmp_path / "checkpoint-1") is False


def test_numbers_that_belong_to_a_ranks_part_cannot_be_unified() -> None:
    half = {"embedding@moment2_0": np.array([0.5], dtype=np.float32)}
    assert _agreed([half, {}, dict(half)]) == half
    with pytest.raises(CheckpointError, match=r"one number for each rank's part of a weight \(embedding@moment2_0\), .*"
                       r"unified_checkpoint: false, or optim: adamw"):  # fmt: skip
        _agreed([half, {"embedding@moment2_0": np.array([0.4], dtype=np.float32)}])
