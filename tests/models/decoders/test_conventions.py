"""BLOOM, GPT, OPT, Qwen 1: padding, caches, packing, prefixes and recompute change only where the work is done.

Logits here are 2 to 5 large; differences come from the order of float32 sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlesft.models.families import family_of
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.training.model_switches import set_model_switches
from paddlesft.tuning.prefix import load_prefix, save_prefix
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.models.decoders import proofs
from tests.training.small_runs import small_config

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {}),
    "bloom, heads no power of two": ("bloom", {"hidden_size": 48, "n_head": 6}),
    "gpt": ("gpt", {}),
    "gpt, fused qkv": ("gpt", {"fuse_attention_qkv": True}),
    "opt": ("opt", {}),
    "opt, like 350m": ("opt", {"word_embed_proj_dim": 32, "normalize_before": False}),
    "qwen": ("qwen", {}),
    "qwen, fused ffn": ("qwen", {"fuse_attention_ffn": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
one_of_each = pytest.mark.parametrize("name", ["bloom", "gpt", "gpt, fused qkv", "opt, like 350m", "qwen"])
TOLERANCE = 1e-5


def model_of(name: str) -> Any:
    family, overrides = MODELS[name]
    return proofs.small(family, **overrides)


@every_model
def test_a_row_alone_has_the_logits_of_paddlenlps_own_forward_pass(name: str) -> None:
    model, row = model_of(name), proofs.rows_of(12)[0]
    with paddle.no_grad():
        wanted = model(paddle.to_tensor([row]))
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    np.testing.assert_allclose(proofs.logits_alone(model, row), wanted[0].numpy(), atol=TOLERANCE)


@every_model
def test_padding_changes_nothing(name: str) -> None:
    model = model_of(name)
    assert proofs.padded_against_alone(model, "left") < TOLERANCE
    assert proofs.padded_against_alone(model, "right") < TOLERANCE


@every_model
def test_steps_with_a_cache_equal_whole_rows(name: str) -> None:
    assert proofs.steps_against_full(model_of(name)) < TOLERANCE


@every_model
def test_packed_rows_equal_separate_rows(name: str) -> None:
    assert proofs.packed_against_separate(model_of(name)) < TOLERANCE


@every_model
def test_a_prefix_that_copies_real_keys_computes_what_the_real_tokens_would(name: str) -> None:
    assert proofs.copied_prefix_against_tokens(model_of(name)) < TOLERANCE


@every_model
def test_with_a_prefix_batches_caches_and_packs_agree_too(name: str) -> None:
    model = proofs.with_prefix(model_of(name))
    assert proofs.padded_against_alone(model, "left") < TOLERANCE
    assert proofs.padded_against_alone(model, "right") < TOLERANCE
    assert proofs.steps_against_full(model) < TOLERANCE
    assert proofs.packed_against_separate(model) < TOLERANCE


@one_of_each
def test_a_saved_prefix_computes_the_same_when_loaded(name: str, tmp_path) -> None:
    model, row = proofs.with_prefix(model_of(name), "prefix_projection=true"), proofs.rows_of(9)[0]
    save_prefix(model, tmp_path)
    bare = model_of(name)
    without = proofs.logits_alone(bare, row)
    with quiet_paddlenlp():
        loaded = load_prefix(bare, tmp_path)
    loaded.eval()
    np.testing.assert_array_equal(proofs.logits_alone(loaded, row), proofs.logits_alone(model, row))
    assert np.abs(proofs.logits_alone(loaded, row) - without).max() > 0.01


@every_model
def test_lora_is_on_every_linear_layer_of_the_decoder(name: str) -> None:
    model = model_of(name)
    wanted = {path for path, layer in model.named_sublayers() if isinstance(layer, nn.Linear)}
    with quiet_paddlenlp():
        lora = prepare_for_tuning(model, small_config("lora=true"))
    found = {path.removesuffix(".lora_A") for path, _ in lora.model.named_parameters() if path.endswith("lora_A")}
    assert found == wanted and len(wanted) >= 8


METHODS = ("lora=true", "prefix_tuning=true", "lora=false")
SWITCHES = {  # how often the second layer is called when it is recomputed: as a whole, or in parts
    "recompute_granularity=full": {"bloom": 2, "gpt": 2, "opt": 2, "qwen": 2},
    "recompute_granularity=full_attn": {"bloom": 2, "gpt": 1, "opt": 2, "qwen": 1},
    "recompute_granularity=core_attn": {"bloom": 2, "gpt": 1, "opt": 2, "qwen": 1},
    "recompute_use_reentrant=true": {"bloom": 2, "gpt": 2, "opt": 2, "qwen": 2},
    "no_recompute_layers=[1]": {"bloom": 1, "gpt": 1, "opt": 1},
}


def layer_calls(name: str, *keys: str) -> tuple[int, dict[str, np.ndarray]]:
    """How often a training step calls the second layer, and the gradients of what is trained."""
    model, config = model_of(name), small_config(*keys)
    family = family_of(model.config)
    set_model_switches(model, config)
    body, calls = getattr(model, family.base_prefix), []
    layers = body.decoder.layers if hasattr(body, "decoder") else body.h
    layers[1].register_forward_post_hook(lambda layer, inputs, output: calls.append(1) and None)
    with quiet_paddlenlp():
        model = prepare_for_tuning(model, config)
    for path, parameter in model.named_parameters():
        if path.endswith("lora_B"):  # zeros at first, which stop the gradient of lora_A
            parameter.set_value(paddle.randn(parameter.shape) * 0.05)
    if config.training.recompute:  # as PaddleNLP's trainer does
        for layer in model.sublayers(include_self=True):
            if hasattr(layer, "enable_recompute"):
                layer.enable_recompute = True
    proofs.gradients(model)
    return len(calls), {path: p.grad.numpy() for path, p in model.named_parameters() if not p.stop_gradient}


@pytest.mark.parametrize("method", METHODS)
@one_of_each
def test_every_trained_weight_has_a_gradient_and_recompute_keeps_it(name: str, method: str) -> None:
    once, wanted = layer_calls(name, method)
    assert once == 1 and wanted
    assert all(np.abs(gradient).max() > 0 for gradient in wanted.values())
    for switch, calls in SWITCHES.items():
        family = MODELS[name][0]
        if family not in calls:
            continue
        count, found = layer_calls(name, method, "recompute=true", switch)
        assert count == calls[family], switch
        for path, gradient in wanted.items():
            np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-6, err_msg=f"{switch}: {path}")
