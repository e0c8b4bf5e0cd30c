"""QLoRA is LoRA over the dequantized weights: losses, gradients, files and first values are the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.config import load_run_config
from paddlesft.data.dataset import SFTDataset
from paddlesft.errors import ConfigError, ModelDirectoryError
from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import FAMILIES, family_of
from paddlesft.models.fast import accelerate
from paddlesft.models.load import load_model
from paddlesft.models.quantized.decoder_linears import decoder_linears
from paddlesft.models.quantized.directory import put_layer, quantized_layers
from paddlesft.models.quantized.formats import WeightFormat
from paddlesft.models.quantized.linear import STATIC, QuantizedLinear
from paddlesft.models.quantized.on_load import entry_of_base
from paddlesft.parallel.division import Division
from paddlesft.training.loss import supervised_loss
from paddlesft.tuning.lora import adapter_weights, add_lora, load_lora, save_lora
from paddlesft.tuning.prepare import parameter_counts, prepare_for_tuning
from paddlesft.tuning.quantized_lora import QuantizedLoRALinear
from tests.training.small_runs import batch_of, losses, small_config, small_model, small_run

FORMATS = [
    WeightFormat("nf4", 16),
    WeightFormat("nf4", 16, True, 32),
    WeightFormat("fp4", 16),
    WeightFormat("int8"),
    WeightFormat("int4"),
]
NF4 = FORMATS[0]
TOKENS = paddle.to_tensor([[5, 6, 7, 8, 9, 10]])
named = pytest.mark.parametrize("how", FORMATS, ids=lambda how: how.name + "-double" * how.double_quantization)


def quantized(how: WeightFormat, model: nn.Layer | None = None) -> nn.Layer:
    model = model or small_model()
    for name, layer in decoder_linears(model).items():
        put_layer(model, name, QuantizedLinear.of(layer, how))
    return model


def dequantized(how: WeightFormat, model: nn.Layer | None = None) -> nn.Layer:
    """The float model with the weights that the codes stand for."""
    model = model or small_model()
    for layer in decoder_linears(model).values():
        layer.weight.set_value(QuantizedLinear.of(layer, how).dequantized())
    return model


def add(model: nn.Layer, *keys: str) -> nn.Layer:
    return add_lora(model, family_of(model.config), small_config("lora=true", *keys).model)


def stirred(model: nn.Layer) -> nn.Layer:
    """Give B values other than zero."""
    draw = np.random.default_rng(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.set_value(paddle.to_tensor(draw.normal(0, 0.1, parameter.shape).astype("float32")))
    return model


def output(model: nn.Layer) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        logits = model(TOKENS)
    return (logits[0] if isinstance(logits, tuple | list) else logits).numpy()


def state(model: nn.Layer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.get_trainable_state_dict().items()}


@named
@pytest.mark.parametrize("keys", [(), ("packing=false", "recompute=true"), ("lora_dropout=0.3", "lora_plus_scale=4")])
def test_losses_are_those_of_lora_over_the_dequantized_weights(
    tmp_path: Path, how: WeightFormat, keys: tuple[str, ...]
) -> None:
    if keys and how is not NF4:
        keys = keys[-1:]
    common = ("lora=true", "lora_rank=4", "max_steps=6", "per_device_train_batch_size=3", *keys)
    trained = small_run(tmp_path / "quantized", *common, model=quantized(how))
    wanted = small_run(tmp_path / "float", *common, model=dequantized(how))
    found, expected = losses(tmp_path / "quantized"), losses(tmp_path / "float")
    assert len(expected) == 6 and np.ptp([loss for _, loss in expected]) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    a, b = state(trained.model), state(wanted.model)
    assert a.keys() == b.keys()
    for name, array in b.items():
        np.testing.assert_allclose(a[name], array, rtol=0, atol=1e-4, err_msg=name)


@named
@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_of_one_layer(how: WeightFormat, rslora: bool) -> None:
    """Against the formulas in float64: dA = s x^T (dy B^T), dB = s (x A)^T dy, dx = dy (W + s A B)^T."""
    draw = np.random.default_rng(3)
    linear = nn.Linear(40, 24)
    layer = QuantizedLinear.of(linear, how)
    from paddlenlp.peft import LoRAConfig

    lora = QuantizedLoRALinear(layer, LoRAConfig(r=4, lora_alpha=12, rslora=rslora))
    scale = 12 / (2 if rslora else 4)
    a, b = draw.normal(size=(40, 4)), draw.normal(size=(4, 24))
    x, dy = draw.normal(size=(2, 5, 40)), draw.normal(size=(2, 5, 24))
    lora.lora_A.set_value(a.astype("float32"))
    lora.lora_B.set_value(b.astype("float32"))
    given = paddle.to_tensor(x.astype("float32"), stop_gradient=False)
    y = lora(given)
    y.backward(paddle.to_tensor(dy.astype("float32")))
    weight = layer.dequantized().numpy().astype(np.float64)
    rows, errors = x.reshape(-1, 40), dy.reshape(-1, 24)
    expected = {
        "y": rows @ (weight + scale * a @ b) + linear.bias.numpy(),
        "dx": errors @ (weight + scale * a @ b).T,
        "dA": scale * rows.T @ (errors @ b.T),
        "dB": scale * (rows @ a).T @ errors,
    }
    found = {"y": y, "dx": given.grad, "dA": lora.lora_A.grad, "dB": lora.lora_B.grad}
    for name, array in expected.items():
        np.testing.assert_allclose(
            found[name].numpy().reshape(array.shape), array, rtol=0, atol=2e-6 * np.abs(array).max(), err_msg=name
        )
    assert lora.bias.grad is None


def test_first_values_names_and_sizes_are_those_of_plain_lora() -> None:
    found, expected = add(quantized(NF4), "lora_rank=4"), add(small_model(), "lora_rank=4")
    assert list(state(found)) == list(state(expected))
    for name, array in state(expected).items():
        np.testing.assert_array_equal(state(found)[name], array)
    trained = {name for name, p in found.named_parameters() if not p.stop_gradient}
    assert trained and all(re.search(r"lora_[AB]$", name) for name in trained)
    assert set(Division(found).own) == set(state(expected))
    np.testing.assert_array_equal(output(found), output(quantized(NF4)))


def test_scaling_and_learning_rate_of_b() -> None:
    layer = add(quantized(NF4), "lora_rank=4", "lora_alpha=6", "rslora=true", "lora_plus_scale=3")
    one = next(iter(quantized_layers(layer).values()))
    assert one.scaling == pytest.approx(6 / math.sqrt(4))
    assert one.lora_B.optimize_attr["learning_rate"] == 3 and one.lora_A.optimize_attr["learning_rate"] == 1


def test_only_targets_get_an_adapter() -> None:
    model = add(quantized(NF4), "lora_target_modules=[q_proj, '.*mlp.up_.*']")
    adapted = {name for name, layer in quantized_layers(model.model).items() if isinstance(layer, QuantizedLoRALinear)}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == {"q_proj", "up_proj"} and len(adapted) == 4
    assert len(quantized_layers(model.model)) == 14


def test_a_base_of_both_kinds(tmp_path: Path) -> None:
    """Layers that stayed float get PaddleNLP's adapter."""
    model, wanted = small_model(), small_model()
    name = "llama.layers.0.self_attn.q_proj"
    put_layer(model, name, QuantizedLinear.of(decoder_linears(model)[name], NF4))
    decoder_linears(wanted)[name].weight.set_value(quantized_layers(model)[name].dequantized())
    np.testing.assert_allclose(output(stirred(add(model))), output(stirred(add(wanted))), atol=1e-5)


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora", 1), ("all", 2)])
def test_biases(bias: str, expected: int) -> None:
    model = small_model()
    for name in ("q_proj", "v_proj"):
        old = getattr(model.llama.layers[0].self_attn, name)
        new = nn.Linear(*old.weight.shape)
        new.weight = old.weight
        setattr(model.llama.layers[0].self_attn, name, new)
    tuned = add(quantized(NF4, model), "lora_target_modules=[q_proj]", f"lora_bias={bias}")
    trained = [name for name, p in tuned.named_parameters() if "bias" in name and not p.stop_gradient]
    assert len(trained) == expected


def test_dropout_works_in_training_only() -> None:
    model = stirred(add(quantized(NF4), "lora_dropout=0.5"))
    assert (output(model) == output(model)).all()
    model.train()
    a, b = (model(TOKENS) for _ in range(2))
    a, b = ((t[0] if isinstance(t, tuple | list) else t).numpy() for t in (a, b))
    assert (a != b).any()


def test_quick_lora_is_left_out_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="paddlesft"):
        model = add(quantized(NF4), "use_quick_lora=true")
    assert "use_quick_lora has no effect over a quantized base" in caplog.text
    assert model.lora_config.use_quick_lora is False


def test_a_saved_adapter_is_a_file_of_plain_lora(tmp_path: Path) -> None:
    model = stirred(add(quantized(NF4), "lora_rank=4"))
    save_lora(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora_config.json", "lora_model_state.pdparams"]
    assert json.loads((tmp_path / "lora_config.json").read_text())["r"] == 4
    weights = adapter_weights(tmp_path)
    assert {name: array.shape for name, array in weights.items()} == {n: a.shape for n, a in state(model).items()}
    np.testing.assert_array_equal(output(load_lora(quantized(NF4), tmp_path)), output(model))
    np.testing.assert_allclose(output(load_lora(dequantized(NF4), tmp_path)), output(model), atol=1e-5)


def test_adapters_are_not_added_to_codes(tmp_path: Path) -> None:
    save_lora(add(quantized(NF4)), tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"cannot be added to quantized weights.*paddlesft merge-lora merges"):
        load_lora(quantized(NF4), tmp_path, merge=True)


@pytest.mark.parametrize("keys", [("lora=true",), ("prefix_tuning=true", "num_prefix_tokens=4")])
def test_the_fast_layers_give_the_same_gradients(keys: tuple[str, ...]) -> None:
    """On 40 tokens they take their own path where the weights are float."""
    ids = paddle.to_tensor(np.random.default_rng(1).integers(5, 90, (2, 40)))

    def gradients(fast: bool) -> dict[str, np.ndarray]:
        model = quantized(NF4)
        if fast:
            assert accelerate(model)
        tuned = stirred(prepare_for_tuning(model, small_config(*keys)))
        tuned.train()
        logits = tuned(ids, attention_mask=paddle.ones_like(ids))
        logits = logits[0] if isinstance(logits, tuple | list) else logits
        (logits.astype("float32").square().mean() * 100).backward()
        return {name: p.grad.numpy() for name, p in tuned.named_parameters() if not p.stop_gradient}

    plain, fast = gradients(False), gradients(True)
    assert plain.keys() == fast.keys() and len(plain) > 0
    for name, array in plain.items():
        np.testing.assert_allclose(fast[name], array, rtol=0, atol=1e-5 * max(np.abs(array).max(), 1e-3), err_msg=name)
        assert np.abs(array).max() > 0, name


def test_mixed_precision_rounds_what_goes_in_not_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs; the CPU has no mixed precision, so what paddle says there is put in, with a type that the CPU has."""
    layer = QuantizedLinear.of(nn.Linear(32, 16), NF4)
    x = paddle.randn([3, 32])
    expected = layer(x.astype("float64"))
    answers = iter([True, False])
    monkeypatch.setattr(paddle, "is_autocast_enabled", lambda: next(answers))
    monkeypatch.setattr(paddle, "get_autocast_gpu_dtype", lambda: "float64")
    found = layer(x)
    assert found.dtype == expected.dtype == paddle.float64
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_recompute_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, again = (
        small_run(tmp_path / key, "lora=true", f"recompute={key}", "max_steps=4", model=quantized(NF4))
        for key in ("false", "true")
    )
    np.testing.assert_allclose(losses(tmp_path / "true"), losses(tmp_path / "false"), rtol=0, atol=1e-6)
    for name, array in state(plain.model).items():
        np.testing.assert_allclose(state(again.model)[name], array, rtol=0, atol=1e-5)


def test_prefixes_learn_over_a_quantized_base(tmp_path: Path) -> None:
    keys = ("prefix_tuning=true", "num_prefix_tokens=4", "max_steps=5", "learning_rate=1e-1")
    small_run(tmp_path / "quantized", *keys, model=quantized(NF4))
    small_run(tmp_path / "float", *keys, model=dequantized(NF4))
    found, expected = losses(tmp_path / "quantized"), losses(tmp_path / "float")
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert expected[0][1] != expected[-1][1]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    keys = ("lora=true", "save_strategy=steps", "save_steps=3", "max_steps=6")
    whole = small_run(tmp_path / "whole", *keys, model=quantized(NF4))
    again = small_run(tmp_path / "again", *keys, model=quantized(NF4), resume=tmp_path / "whole" / "checkpoint-3")
    assert losses(tmp_path / "again")[-1] == pytest.approx(losses(tmp_path / "whole")[-1], abs=1e-6)
    for name, array in state(whole.model).items():
        np.testing.assert_allclose(state(again.model)[name], array, rtol=0, atol=1e-6)


def test_full_fine_tuning_of_a_quantized_base_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_for_tuning(quantized(NF4), small_config("do_train=true"))
    assert str(caught.value) == (
        "model_name_or_path: 14 layers of this base are quantized (nf4); such weights cannot be trained. Set lora: "
        "true (QLoRA) or prefix_tuning: true to train an adapter over them, or give the float model to train all "
        "weights."
    )
    prepare_for_tuning(quantized(NF4), small_config("do_train=false", "do_eval=true", "eval_dataset_path=x"))


@pytest.mark.parametrize("keys", [("lora=true",), ("prefix_tuning=true",), ()])
def test_bases_with_rounded_activations_are_refused(keys: tuple[str, ...]) -> None:
    model = small_model()
    name, layer = next(iter(decoder_linears(model).items()))
    put_layer(model, name, QuantizedLinear(*layer.weight.shape, WeightFormat("int8"), activations=STATIC))
    with pytest.raises(ConfigError, match=r"1 layers of this base round their activations .*nf4, fp4, weight_only"):
        prepare_for_tuning(model, small_config("do_train=true", *keys))


def test_parameters_are_counted() -> None:
    plain, tuned = (prepare_for_tuning(m, small_config("lora=true")) for m in (small_model(), quantized(NF4)))
    assert parameter_counts(tuned) == parameter_counts(plain)


def test_another_base_than_the_adapters_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_lora(add(quantized(NF4)), tmp_path)
    (tmp_path / "paddlesft.json").write_text(json.dumps({"format": 1, "base_quantization": entry_of_base(NF4)}))
    prepare_for_tuning(small_model(), small_config("lora=true", f"lora_path={tmp_path}"))
    assert "was trained over a base of nf4, now weight_quantize_algo gives not quantized while loading" in caplog.text


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_takes_a_step(name: str, tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """With the losses, of two steps, of LoRA over the dequantized weights."""
    how = WeightFormat("nf4", 64, True)
    directory = tiny_family(name)
    config = load_run_config(
        None, ["output_dir=x", f"model_name_or_path={directory}", "train_dataset_path=x", "lora=true"]
    )

    def losses_of(model: nn.Layer) -> list[float]:
        prompts = [decoder_of(model).as_prompt(list(range(5, 9 + i))) for i in range(3)]
        replies = [[20 + i] * (4 - i) for i in range(3)]
        dataset = SFTDataset(
            [prompt + reply for prompt, reply in zip(prompts, replies)],
            [[False] * len(prompt) + [True] * len(reply) for prompt, reply in zip(prompts, replies)],
        )
        tuned = stirred(prepare_for_tuning(model, config))
        tuned.train()
        trained = [p for p in tuned.parameters() if not p.stop_gradient]
        optimizer = paddle.optimizer.SGD(0.5, parameters=trained)
        found = []
        for _ in range(2):
            sums = supervised_loss(tuned, batch_of(dataset))
            loss = sums.loss_sum / sums.trained_tokens
            loss.backward()
            assert all(p.grad is not None for p in trained)
            optimizer.step()
            optimizer.clear_grad()
            found.append(float(loss))
        return found

    found = losses_of(load_model(directory, for_training=True, quantize=how))
    expected = losses_of(dequantized(how, load_model(directory, for_training=True)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected[1] < expected[0]
