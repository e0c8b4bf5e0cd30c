import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddlenlp.peft import LoRAModel
from safetensors.numpy import save_file

from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.families import family_of
from paddlesft.models.load import load_model
from paddlesft.tuning.lora import adapter_weights, add_lora, load_lora, save_lora
from paddlesft.tuning.lora_targets import linear_names, target_patterns
from tests.training.small_runs import small_config, small_model

TOKENS = paddle.to_tensor([[5, 6, 7, 8, 9, 10]])
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def add(*overrides: str, model=None) -> LoRAModel:
    model = model or small_model()
    paddle.seed(1)
    return add_lora(model, family_of(model.config), small_config("lora=true", *overrides).model)


def adapted(model: LoRAModel) -> set[str]:
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}


def output(model) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        logits = model(TOKENS)
    return (logits[0] if isinstance(logits, tuple | list) else logits).numpy()


def stirred(model: LoRAModel) -> LoRAModel:
    """Give B values other than zero."""
    paddle.seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    return model


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained() -> None:
    before = output(small_model())
    model = add("lora_rank=4")
    np.testing.assert_array_equal(output(model), before)
    trained = {name for name, p in model.named_parameters() if not p.stop_gradient}
    assert trained and all(re.search(r"lora_[AB]$", name) for name in trained)
    assert not (output(stirred(model)) == before).all()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([], ALL),
        (["lora_target_modules=all"], ALL),
        (["lora_target_modules=[q_proj, v_proj]"], {"q_proj", "v_proj"}),
        (["lora_target_modules=.*self_attn.*"], {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (["lora_target_modules=[down_proj, '.*mlp.up_.*']"], {"down_proj", "up_proj"}),
    ],
)
def test_targets(targets: list[str], expected: set[str]) -> None:
    model = add(*targets)
    assert adapted(model) == expected
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * len(expected)


def test_one_layer_can_be_named() -> None:
    model = add("lora_target_modules=[layers.1.self_attn.q_proj]")
    found = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(found) == 1 and "layers.1.self_attn.q_proj" in found[0]


def test_targets_that_fit_nothing_list_what_there_is() -> None:
    with pytest.raises(ConfigError) as error:
        add("lora_target_modules=[q_porj]")
    text = str(error.value)
    assert "'q_porj' fits no Linear layer" in text and "Did you mean 'q_proj'?" in text
    assert all(name in text for name in ALL) and "llama.layers.0.self_attn.q_proj" in text
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        add("lora_target_modules=(")
    with pytest.raises(ConfigError, match="'lm_head' fits no Linear layer"):
        add("lora_target_modules=[lm_head]")


def test_a_family_whose_targets_are_not_there_is_said() -> None:
    import dataclasses

    model = small_model()
    family = dataclasses.replace(family_of(model.config), lora_target_modules=(".*c_attn.*",))
    with pytest.raises(ConfigError, match="none of the usual targets of family llama"):
        target_patterns(model, family, None)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (["lora_rank=4"], 2.0),  # alpha is 2 * rank
        (["lora_rank=4", "lora_alpha=4"], 1.0),
        (["lora_rank=4", "lora_alpha=8", "rslora=true"], 4.0),
    ],
)
def test_scaling(keys: list[str], scaling: float) -> None:
    model = stirred(add(*keys))
    layer = model.model.llama.layers[0].self_attn.q_proj
    assert layer.scaling == pytest.approx(scaling)
    x = paddle.randn([1, 3, 32])
    expected = x @ layer.weight + scaling * (x @ layer.lora_A @ layer.lora_B)
    np.testing.assert_allclose(layer(x).numpy(), expected.numpy(), atol=1e-5)


def test_dropout_works_in_training_only() -> None:
    model = stirred(add("lora_dropout=0.5"))
    assert (output(model) == output(model)).all()
    model.train()
    a, b = (model(TOKENS) for _ in range(2))
    a, b = ((t[0] if isinstance(t, tuple | list) else t).numpy() for t in (a, b))
    assert (a != b).any()


def test_dropout_beside_layers_whose_patterns_fit_what_is_inside_them(tiny_family: Callable[[str], Path]) -> None:
    """GLM's usual targets end in ``.*``."""
    with_dropout, without = (
        add(f"lora_dropout={rate}", model=load_model(tiny_family("glm"))).get_trainable_state_dict()
        for rate in (0.1, 0.0)
    )
    assert list(with_dropout) == list(without) != []


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora", 1), ("all", 2)])
def test_biases(bias: str, expected: int) -> None:
    model = small_model()
    for name in ("q_proj", "v_proj"):
        old = getattr(model.llama.layers[0].self_attn, name)
        new = paddle.nn.Linear(*old.weight.shape)
        new.weight = old.weight
        setattr(model.llama.layers[0].self_attn, name, new)
    config = small_config("lora=true", "lora_target_modules=[q_proj]", f"lora_bias={bias}").model
    config.use_quick_lora = True  # the loader refuses it together with biases; the library turns it off
    tuned = add_lora(model, family_of(model.config), config)
    trained = [name for name, p in tuned.named_parameters() if "bias" in name and not p.stop_gradient]
    assert len(trained) == expected
    assert tuned.lora_config.use_quick_lora is (bias == "none")


def test_a_saved_adapter_computes_the_same_when_loaded(tmp_path: Path) -> None:
    model = stirred(add("lora_rank=4", "lora_dropout=0.1"))
    save_lora(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora_config.json", "lora_model_state.pdparams"]
    config = json.loads((tmp_path / "lora_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    loaded = load_lora(small_model(), tmp_path)
    np.testing.assert_array_equal(output(loaded), output(model))
    assert any(not p.stop_gradient for p in loaded.parameters())


def test_safetensors_adapters_load_too(tmp_path: Path) -> None:
    model = stirred(add())
    save_lora(model, tmp_path)
    weights = adapter_weights(tmp_path)
    (tmp_path / "lora_model_state.pdparams").unlink()
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, tmp_path / "lora_model_state.safetensors")
    np.testing.assert_array_equal(output(load_lora(small_model(), tmp_path)), output(model))


def test_merging_while_loading_gives_a_plain_model(tmp_path: Path) -> None:
    model = stirred(add())
    save_lora(model, tmp_path)
    merged = load_lora(small_model(), tmp_path, merge=True)
    assert not isinstance(merged, LoRAModel) and not any("lora" in name for name, _ in merged.named_parameters())
    np.testing.assert_allclose(output(merged), output(model), atol=1e-4)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    save_lora(add("lora_rank=4"), tmp_path)
    with pytest.raises(ModelDirectoryError) as error:
        load_lora(small_model(hidden_size=64), tmp_path)
    text = str(error.value)
    assert "does not fit this base model" in text and "shapes differ" in text
    assert "is [32, 4], the model needs [64, 4]" in text
    with pytest.raises(ModelDirectoryError, match=r"14 of 28 tensors are missing"):
        load_wrong_depth(tmp_path)


def load_wrong_depth(path: Path) -> None:
    weights = adapter_weights(path)
    half = {k: paddle.to_tensor(v) for k, v in weights.items() if ".0." in k}
    paddle.save(half, str(path / "lora_model_state.pdparams"))
    load_lora(small_model(), path)


def test_a_directory_that_is_no_adapter_is_said(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(ModelDirectoryError, match=r"is not a LoRA directory: found readme\.txt; needed lora_config"):
        load_lora(small_model(), tmp_path)
    save_lora(add(), tmp_path)
    (tmp_path / "lora_config.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match=r"lora_config.json cannot be read"):
        load_lora(small_model(), tmp_path)
    (tmp_path / "lora_config.json").unlink()
    with pytest.raises(ModelDirectoryError, match="Copy the whole directory"):
        load_lora(small_model(), tmp_path)


def test_linear_names_leave_the_head_out() -> None:
    names = linear_names(small_model())
    assert len(names) == 14 and not any("lm_head" in name for name in names)
