import math

import numpy as np
import paddle
import pytest
from paddle import nn
from paddlenlp.peft.lora.lora_layers import LoRALinear

from paddlesft.models.families import family_of
from paddlesft.tuning.initial_values import layer_weight, low_rank_input
from paddlesft.tuning.lora import add_lora
from paddlesft.tuning.prefix import add_prefix
from tests.training.small_runs import small_config, small_model


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (lambda: low_rank_input(1, "a", [512, 64]), lambda: LoRALinear(512, 4, r=64).lora_A),
        (lambda: layer_weight(1, "a", [300, 700]), lambda: nn.Embedding(300, 700).weight),
        (lambda: layer_weight(1, "a", [300, 700]), lambda: nn.Linear(300, 700).weight),
        (lambda: layer_weight(1, "a", [700]), lambda: nn.Linear(300, 700).bias),
    ],
)
def test_the_distribution_is_that_of_the_layers(mine, theirs) -> None:
    paddle.seed(3)
    a, b = mine(), theirs().numpy()
    assert a.shape == b.shape and a.dtype == b.dtype
    for share in (0, 1, 10, 25, 50, 75, 90, 99, 100):  # percentiles of 32768 values or more
        assert np.percentile(a, share) == pytest.approx(np.percentile(b, share), abs=0.02 * (b.max() - b.min()))


def test_a_weight_follows_from_seed_and_name_alone() -> None:
    first = low_rank_input(1, "layer.lora_A", [8, 4])
    paddle.seed(99)
    np.random.seed(99)
    np.testing.assert_array_equal(low_rank_input(1, "layer.lora_A", [8, 4]), first)
    assert (low_rank_input(2, "layer.lora_A", [8, 4]) != first).any()
    assert (low_rank_input(1, "other.lora_A", [8, 4]) != first).any()
    # these numbers are part of what a seed means: they must not change from version to version
    np.testing.assert_allclose(first[0], [0.16783842, -0.14926921, 0.15431985, -0.20697314], rtol=1e-6)


def test_adapters_start_from_them() -> None:
    model = small_model()
    lora = add_lora(model, family_of(model.config), small_config("lora=true", "lora_rank=4").model, seed=5)
    state = lora.model.state_dict()
    drawn = [name for name in state if name.endswith(".lora_A")]
    assert len(drawn) == 14
    for name in drawn:
        array = state[name].numpy()
        np.testing.assert_array_equal(array, low_rank_input(5, name, array.shape))
        assert 0.5 / math.sqrt(array.shape[0]) < np.abs(array).max() <= 1 / math.sqrt(array.shape[0])
    assert all(not state[name.replace("lora_A", "lora_B")].numpy().any() for name in drawn)


def test_prefixes_start_from_them() -> None:
    model = small_model()
    config = small_config("prefix_tuning=true", "num_prefix_tokens=6", "prefix_projection=true").model
    encoder = add_prefix(model, family_of(model.config), config, seed=5).prefix_encoder.state_dict()
    assert sorted(encoder) == ["0.weight", "1.bias", "1.weight", "3.bias", "3.weight"]
    for name, tensor in encoder.items():
        np.testing.assert_array_equal(tensor.numpy(), layer_weight(5, f"prefix_encoder.{name}", tensor.shape))
