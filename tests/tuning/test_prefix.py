from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.families import family_of
from paddlesft.training.loss import trained_token_losses
from paddlesft.tuning.prefix import add_prefix, load_prefix, prefix_shape, save_prefix
from tests.training.small_runs import batch_of, small_config, small_dataset, small_model

KEYS = ["prefix_tuning=true", "num_prefix_tokens=6"]


def add(*overrides: str, model=None):
    model = model or small_model()
    paddle.seed(1)
    return add_prefix(model, family_of(model.config), small_config(*KEYS, *overrides).model)


def scores(model) -> np.ndarray:
    model.eval()
    return trained_token_losses(model, batch_of(small_dataset(4)))[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_prefix_fills_the_key_value_heads(kv_heads: int) -> None:
    model = add(model=small_model(num_key_value_heads=kv_heads))
    caches = model._get_past_key_values(3)
    assert len(caches) == 2
    keys, values = caches[0]
    assert keys.shape[-3:] == [6, kv_heads, 8] == values.shape[-3:]
    assert np.isfinite(scores(model)).all()


def test_the_shape_comes_from_the_family_table() -> None:
    model = small_model()
    assert prefix_shape(model, family_of(model.config)) == {
        "num_attention_heads": 4, "multi_query_group_num": 2, "num_hidden_layers": 2, "hidden_size": 32
    }  # fmt: skip


def test_a_prefix_that_copies_real_keys_computes_what_the_real_tokens_would() -> None:
    """The keys and values of a first token, used as a prefix, give the scores of the sequence with that token."""
    model, row = small_model(), small_dataset(1)[0]
    model.eval()
    ids = paddle.to_tensor([row["input_ids"]])
    with paddle.no_grad():
        full = model.llama(ids, use_cache=True)
        cache = [(keys[:, :1], values[:, :1]) for keys, values in full[1]]
        rest = model.llama(ids[:, 1:], position_ids=paddle.arange(1, ids.shape[1]).unsqueeze(0),
                           attention_mask=paddle.ones_like(ids), past_key_values=cache)  # fmt: skip
    rest = rest[0] if isinstance(rest, tuple | list) else rest
    np.testing.assert_allclose(rest.numpy(), full[0][:, 1:].numpy(), atol=1e-5)
    tuned = add(model=model)
    tuned.prefix_config.num_prefix_tokens = 1
    tuned._get_past_key_values = lambda batch: cache
    from paddlesft.training.loss import hidden_states

    batch = {"input_ids": ids[:, 1:], "attention_mask": paddle.ones_like(ids[:, 1:]),
             "position_ids": paddle.arange(1, ids.shape[1]).unsqueeze(0)}  # fmt: skip
    with paddle.no_grad():
        np.testing.assert_allclose(hidden_states(tuned, batch).numpy(), rest.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "keys", [[], ["prefix_projection=true"], ["prefix_projection=true", "prefix_projection_hidden_size=24"]]
)
def test_only_the_prefix_is_trained_and_every_part_of_it(keys: list[str]) -> None:
    model = add(*keys)
    model.train()
    from paddlesft.training.loss import supervised_loss

    supervised_loss(model, batch_of(small_dataset(3))).loss_sum.backward()
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    assert trained and all(name.startswith("prefix_encoder") for name in trained)
    assert all(float(p.grad.abs().max()) > 0 for p in trained.values())
    assert len(trained) == (5 if keys else 1)
    if len(keys) == 2:
        assert [32 // 4 * 2, 24] in [p.shape for p in trained.values()]


def test_a_saved_prefix_computes_the_same_when_loaded(tmp_path: Path) -> None:
    model = add("prefix_projection=true")
    save_prefix(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "pre_caches.npy", "prefix_config.json", "prefix_model_state.pdparams"
    ]  # fmt: skip
    caches = np.load(tmp_path / "pre_caches.npy")
    assert caches.shape == (2, 2, 2, 6, 8)  # layers, key/value, heads, prefix, head_dim
    np.testing.assert_array_equal(scores(load_prefix(small_model(), tmp_path)), scores(model))


def test_a_prefix_for_another_model_is_refused(tmp_path: Path) -> None:
    save_prefix(add(), tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"trained for another base model: multi_query_group_num 2 \(the "):
        load_prefix(small_model(num_key_value_heads=4), tmp_path)
    paddle.save({"0.weight": paddle.zeros([6, 3])}, str(tmp_path / "prefix_model_state.pdparams"))
    with pytest.raises(ModelDirectoryError, match="shapes differ"):
        load_prefix(small_model(), tmp_path)


def test_a_directory_that_is_no_prefix_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"not a prefix directory: prefix_config.json and prefix_model_state"):
        load_prefix(small_model(), tmp_path)
    save_prefix(add(), tmp_path)
    (tmp_path / "prefix_config.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match="cannot be read"):
        load_prefix(small_model(), tmp_path)
