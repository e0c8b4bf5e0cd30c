"""ChatGLM2 and ChatGLM3: padding, caches, packing, prefixes and recompute change only where the work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import ConfigError, DataError
from paddlesft.models.decoders import decoder_of
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.training.model_switches import set_model_switches
from paddlesft.tuning.prefix import load_prefix, save_prefix
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.models.decoders import proofs
from tests.training.small_runs import small_config

TOLERANCE = 1e-5


def small(**overrides: Any) -> Any:
    return proofs.small("chatglm_v2", **overrides)


def test_a_row_alone_has_the_logits_of_paddlenlps_own_forward_pass() -> None:
    model, row = small(), proofs.rows_of(12)[0]
    with paddle.no_grad():
        wanted = model(paddle.to_tensor([row]))[0]
    np.testing.assert_allclose(proofs.logits_alone(model, row), wanted[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_batches_caches_and_packs_agree_with_rows_alone(groups: int, prefix: bool) -> None:
    model = small(multi_query_group_num=groups)
    model = proofs.with_prefix(model) if prefix else model
    assert proofs.padded_against_alone(model, "left") < TOLERANCE
    assert proofs.padded_against_alone(model, "right") < TOLERANCE
    assert proofs.steps_against_full(model) < TOLERANCE
    assert proofs.packed_against_separate(model) < TOLERANCE


def test_a_prefix_that_copies_real_keys_computes_what_the_real_tokens_would() -> None:
    assert proofs.copied_prefix_against_tokens(small()) < TOLERANCE


def test_a_saved_prefix_computes_the_same_when_loaded(tmp_path: Path) -> None:
    model, row = proofs.with_prefix(small(), "prefix_projection=true"), proofs.rows_of(9)[0]
    save_prefix(model, tmp_path)
    with quiet_paddlenlp():
        loaded = load_prefix(small(), tmp_path)
    loaded.eval()
    np.testing.assert_array_equal(proofs.logits_alone(loaded, row), proofs.logits_alone(model, row))
    assert np.abs(proofs.logits_alone(loaded, row) - proofs.logits_alone(small(), row)).max() > 0.01


SWITCHES = {  # how often the second layer is called when it is recomputed: as a whole, or in parts
    "recompute_granularity=full": 2,
    "recompute_granularity=full_attn": 1,
    "recompute_granularity=core_attn": 1,
    "recompute_use_reentrant=true": 2,
    "no_recompute_layers=[1]": 1,
}


def layer_calls(*keys: str) -> tuple[int, dict[str, np.ndarray]]:
    """How often a training step calls the second layer, and the gradients of what is trained."""
    model, config, calls = small(), small_config(*keys), []
    set_model_switches(model, config)
    model.chatglm_v2.encoder.layers[1].register_forward_post_hook(lambda *_: calls.append(1) and None)
    with quiet_paddlenlp():
        model = prepare_for_tuning(model, config)
    paddle.seed(1)
    for path, parameter in model.named_parameters():
        if path.endswith("lora_B"):  # zeros at first, which stop the gradient of lora_A
            parameter.set_value(paddle.randn(parameter.shape) * 0.05)
    if config.training.recompute:  # as PaddleNLP's trainer does
        for layer in model.sublayers(include_self=True):
            if hasattr(layer, "enable_recompute"):
                layer.enable_recompute = True
    gradients = proofs.gradients(model)
    assert [name for name, gradient in gradients.items() if not gradient > 0] == []
    return len(calls), {path: p.grad.numpy() for path, p in model.named_parameters() if not p.stop_gradient}


@pytest.mark.parametrize("method", ["lora=true", "prefix_tuning=true", "lora=false"])
def test_every_trained_weight_has_a_gradient_and_recompute_keeps_it(method: str) -> None:
    once, wanted = layer_calls(method)
    assert once == 1 and wanted
    for switch, calls in SWITCHES.items():
        count, found = layer_calls(method, "recompute=true", switch)
        assert count == calls, switch
        for path, gradient in wanted.items():
            np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-6, err_msg=f"{switch}: {path}")


def test_rows_longer_than_the_rotary_positions_are_refused_but_packs_are_not() -> None:
    model = small(max_sequence_length=8)
    with pytest.raises(DataError, match="A row has 9 tokens, more than the 8 positions of this model"):
        proofs.logits_alone(model, proofs.rows_of(9)[0])
    row = proofs.rows_of(6)[0]
    ids, places = paddle.to_tensor([row + row]), paddle.to_tensor([[*range(6), *range(6)]])
    segments = paddle.to_tensor([[1] * 6 + [2] * 6])
    decoder = decoder_of(model)
    with paddle.no_grad():
        packed = decoder.logits(decoder.run(ids, segment_ids=segments, position_ids=places)[0])[0].numpy()
    np.testing.assert_allclose(packed[6:], proofs.logits_alone(model, row), atol=TOLERANCE)


def test_flash_attention_is_refused() -> None:
    model = small()
    model.config.use_flash_attention = True
    with pytest.raises(ConfigError, match=r"mixes up the rows of a batch in ChatGLM2 and ChatGLM3\. Set use_flash"):
        proofs.logits_alone(model, [5, 6])


def test_paddlenlps_flash_attention_still_mixes_up_rows() -> None:
    """When this fails, PaddleNLP has mended it: refuse it no longer."""
    model, rows = small(), proofs.rows_of(6, 6)
    wanted = np.stack([proofs.logits_alone(model, row) for row in rows])
    model.config.use_flash_attention = True
    with paddle.no_grad():
        alone, together = model(paddle.to_tensor(rows[:1]))[0].numpy(), model(paddle.to_tensor(rows))[0].numpy()
    np.testing.assert_allclose(alone, wanted[:1], atol=1e-4)
    assert np.abs(together - wanted).max() > 0.1


def test_paddlenlp_still_overlooks_a_cache_without_use_cache() -> None:
    """When this fails, the decoder need not ask for a cache that nobody wants."""
    model, row = small(), paddle.to_tensor(proofs.rows_of(8))
    with paddle.no_grad():
        cache = model.chatglm_v2(row[:, :5], use_cache=True)[1]
        given = {"position_ids": paddle.to_tensor([[5, 6, 7]]), "past_key_values": cache}
        used = model.chatglm_v2(row[:, 5:], use_cache=True, **given)[0]
        with pytest.raises(ValueError, match=r"(?i)broadcast"):
            model.chatglm_v2(row[:, 5:], use_cache=False, **given)
    assert used.shape[0] == 3
