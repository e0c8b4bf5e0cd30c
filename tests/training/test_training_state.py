from pathlib import Path

import paddle
import pytest

from paddlesft.errors import CheckpointError
from paddlesft.training.training_state import (
    DIRECTORY,
    load_optimizer_state,
    load_random_state,
    load_training_state,
    optimizer_state,
)
from tests.training.small_runs import small_run


def test_the_state_has_structured_names_and_fits_a_model_made_later(tmp_path: Path) -> None:
    first = small_run(tmp_path / "a", "lora=true", "max_steps=3")
    state = optimizer_state(first.optimizer, first.model)
    moments = [key for key in state if key.endswith("@moment1_0")]
    assert len(moments) == 28 and all("lora_" in key for key in moments)
    # paddle names the parameters of a second model differently: its own state would not fit, and would not say so
    second = small_run(tmp_path / "b", "lora=true", "max_steps=1")
    assert first.optimizer.state_dict().keys() != second.optimizer.state_dict().keys()
    load_optimizer_state(second.optimizer, second.model, state, tmp_path)
    loaded = optimizer_state(second.optimizer, second.model)
    assert loaded.keys() == state.keys()
    assert all((loaded[key].numpy() == state[key].numpy()).all() for key in moments)


def test_a_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    lora = small_run(tmp_path / "a", "lora=true", "max_steps=1")
    full = small_run(tmp_path / "b", "max_steps=1")
    with pytest.raises(CheckpointError, match=r"does not fit the weights that this run trains \(no state for llama"):
        load_optimizer_state(full.optimizer, full.model, optimizer_state(lora.optimizer, lora.model), tmp_path)


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
