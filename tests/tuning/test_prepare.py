from pathlib import Path

import numpy as np
import paddle
import pytest
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.errors import ConfigError
from paddlesft.tuning.prepare import parameter_counts, prepare_for_tuning, save_adapter, tuning_method
from tests.training.small_runs import small_config, small_model


def test_the_method_follows_from_the_config() -> None:
    assert tuning_method(small_config()) == "full"
    assert tuning_method(small_config("lora=true")) == "lora"
    assert tuning_method(small_config("prefix_tuning=true")) == "prefix"
    both = small_config("lora=true")
    both.model.prefix_tuning = True
    with pytest.raises(ConfigError, match="lora and prefix_tuning are both true"):
        tuning_method(both)


def test_full_fine_tuning_trains_everything() -> None:
    model = small_model()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    tuned = prepare_for_tuning(model, small_config())
    trained, total = parameter_counts(tuned)
    assert tuned is model and trained == total > 20_000


@pytest.mark.parametrize("keys", [["lora=true"], ["prefix_tuning=true", "num_prefix_tokens=4"]])
def test_the_start_depends_on_the_seed_alone(keys: list[str]) -> None:
    def start(seed: int, noise: int) -> np.ndarray:
        model = small_model()
        paddle.randn([noise])  # whatever was computed before
        tuned = prepare_for_tuning(model, small_config(*keys, f"seed={seed}"))
        return np.concatenate([p.numpy().ravel() for p in tuned.parameters() if not p.stop_gradient])

    np.testing.assert_array_equal(start(1, 3), start(1, 77))
    assert (start(1, 3) != start(2, 3)).any()


def test_training_can_start_from_a_saved_adapter(tmp_path: Path) -> None:
    for keys, kind, key in (
        (["lora=true", "lora_rank=3"], LoRAModel, "lora_path"),
        (["prefix_tuning=true", "num_prefix_tokens=4"], PrefixModelForCausalLM, "prefix_path"),
    ):
        path = tmp_path / key
        path.mkdir()
        first = prepare_for_tuning(small_model(), small_config(*keys, "seed=3"))
        assert save_adapter(first, path)
        config = small_config(keys[0], f"{key}={path}")
        again = prepare_for_tuning(small_model(), config)
        assert isinstance(again, kind)
        assert parameter_counts(again) == parameter_counts(first)
        for a, b in zip(first.parameters(), again.parameters()):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
            assert a.stop_gradient == b.stop_gradient
    assert config.model.num_prefix_tokens == 4 and "as in" in str(config.origins["num_prefix_tokens"])
    with pytest.raises(ConfigError, match=r"num_prefix_tokens: found 9, but the adapter in .* has 4"):
        prepare_for_tuning(small_model(), small_config(keys[0], f"{key}={path}", "num_prefix_tokens=9"))


def test_a_plain_model_has_no_adapter_to_save(tmp_path: Path) -> None:
    assert save_adapter(small_model(), tmp_path) is False and not list(tmp_path.iterdir())


def test_parts_and_shared_matrices_are_counted_as_the_whole_model_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle.distributed.fleet.base import topology

    class TwoTensorParallelRanks:
        def get_model_parallel_world_size(self) -> int:
            return 2

        def get_pipe_parallel_world_size(self) -> int:
            return 1

    model = paddle.nn.Sequential(
        paddle.nn.Linear(3, 4), paddle.nn.Linear(4, 5, bias_attr=False), paddle.nn.Linear(2, 2)
    )
    model[0].weight.is_distributed = model[0].bias.is_distributed = True
    model[1].weight.stop_gradient = True
    model[2].weight.is_firstly_shared = False  # another stage has counted it
    assert parameter_counts(model) == (16 + 2, 16 + 20 + 2)
    monkeypatch.setattr(topology, "_HYBRID_PARALLEL_GROUP", TwoTensorParallelRanks())
    assert parameter_counts(model) == (2 * 16 + 2, 2 * 16 + 20 + 2)
