"""The fast layers compute what upstream's layers compute: losses, every gradient, generated tokens."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddlenlp.transformers.llama.modeling import LlamaAttention, LlamaMLP, LlamaRMSNorm

from paddlesft.models.fast import accelerate, restore, swap
from paddlesft.models.fast.attention import AttentionFunction
from paddlesft.models.fast.linear import SharedInputLinears
from paddlesft.models.fast.mlp import FastMLP

ALL = ["LlamaAttention", "LlamaLMHead", "LlamaMLP", "LlamaRMSNorm"]
LENGTHS = (40, 33)


def token_batch(lengths=LENGTHS, vocabulary: int = 97, seed: int = 0) -> dict[str, paddle.Tensor]:
    """A right-padded batch whose labels are the next tokens, with the first third of each row untrained."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    ids = rng.integers(1, vocabulary, [len(lengths), width])
    mask = np.array([[1] * n + [0] * (width - n) for n in lengths])
    labels = np.where(mask == 1, np.roll(ids, -1, axis=1), -100)
    labels[:, : width // 3] = -100
    return {name: paddle.to_tensor(value, dtype="int64") for name, value in
            {"input_ids": ids, "attention_mask": mask, "labels": labels}.items()}  # fmt: skip


def loss_and_gradients(model, batch, **inputs) -> tuple[float, dict[str, np.ndarray]]:
    """One forward and backward pass; the loss is the mean over trained tokens, from the decoder's hidden states."""
    lm = model.model if hasattr(model, "lora_config") else model
    paddle.seed(5)
    labels = batch["labels"].reshape([-1])
    masks = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
    hidden = lm.llama(batch["input_ids"], **{**masks, **inputs})[0]
    index = paddle.nonzero(labels != -100).flatten()
    rows, targets = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), index), paddle.gather(labels, index)
    if hasattr(lm.lm_head, "token_losses"):
        loss = lm.lm_head.token_losses(rows, targets).mean()
    else:
        loss = F.cross_entropy(lm.lm_head(rows), targets)
    loss.backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    model.clear_gradients()
    return float(loss), gradients


def assert_equal(model, batch, expected_swaps=ALL, **inputs) -> None:
    """Run upstream's and the fast layers and compare the loss and each gradient (to 1e-5 of its largest entry)."""
    loss, gradients = loss_and_gradients(model, batch, **inputs)
    assert accelerate(model) == expected_swaps
    fast_loss, fast_gradients = loss_and_gradients(model, batch, **inputs)
    assert fast_loss == pytest.approx(loss, abs=1e-5)
    assert gradients and gradients.keys() == fast_gradients.keys()
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, f"{name}: no gradient reaches it, so nothing is compared"
        bound = 1e-5 * max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(fast_gradients[name], gradient, rtol=0, atol=bound, err_msg=name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fast functions that ran, so that no comparison passes because upstream's path was taken."""
    seen: list[str] = []
    for function in (AttentionFunction, SharedInputLinears):
        original = function.apply

        def counted(*args, _original=original, _name=function.__name__, **kwargs):
            seen.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(function, "apply", counted)
    return seen


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)], ids=["grouped", "multi-head", "multi-query"])
def test_lora_gradients_are_upstreams(build, lora, calls, heads) -> None:
    model = lora(build(num_attention_heads=heads[0], num_key_value_heads=heads[1]))
    assert_equal(model, token_batch())
    assert calls.count("AttentionFunction") == 2
    assert calls.count("SharedInputLinears") == 8


@pytest.mark.parametrize("tied", [False, True])
def test_full_gradients_are_upstreams(build, calls, tied) -> None:
    model = build(tie_word_embeddings=tied)
    model.train()
    assert_equal(model, token_batch())
    assert calls.count("AttentionFunction") == 2


def test_without_onednn(build, lora, monkeypatch) -> None:
    monkeypatch.setattr("paddlesft.models.fast.primitives.has_onednn", lambda: False)
    monkeypatch.setattr("paddlesft.models.fast.primitives.multiplies_with_onednn", lambda: False)
    assert_equal(lora(build()), token_batch())


def test_odd_sizes(build, lora, calls) -> None:
    model = lora(build(hidden_size=60, num_attention_heads=6, num_key_value_heads=3, intermediate_size=101))
    assert_equal(model, token_batch((37, 35, 1)))
    assert "AttentionFunction" in calls


def test_causal_mask_alone(build, lora, calls) -> None:
    batch = token_batch((40, 40))
    del batch["attention_mask"]
    assert_equal(lora(build()), batch)
    assert "AttentionFunction" in calls


def test_packed_rows_with_restarting_positions(build, lora, calls) -> None:
    batch = token_batch((40, 40))
    del batch["attention_mask"]
    segments = paddle.to_tensor([[1] * 17 + [2] * 23, [1] * 30 + [2] * 6 + [0] * 4])
    positions = paddle.to_tensor([[*range(17), *range(23)], [*range(30), *range(6), *range(4)]])
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    mask = paddle.tril(same.astype("int32")).astype("bool").unsqueeze(1)
    assert_equal(lora(build()), batch, attention_mask=mask, position_ids=positions)
    assert "AttentionFunction" in calls


def test_dropped_adapter_inputs_are_the_same_ones(build, lora, calls) -> None:
    assert_equal(lora(build(), dropout=0.3), token_batch())
    assert "AttentionFunction" in calls


def test_no_dropout_in_evaluation(build, lora) -> None:
    model = lora(build(), dropout=0.3)
    model.eval()
    assert_equal(model, token_batch())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recomputation(build, lora, calls, granularity, reentrant) -> None:
    model = build(recompute=True, recompute_granularity=granularity, recompute_use_reentrant=reentrant)
    for layer in model.sublayers():
        if hasattr(layer, "enable_recompute"):
            layer.enable_recompute = True
    model = lora(model)
    # The frozen embedding's output carries no gradient, with which the first layer would not be recomputed.
    model.model.llama.embed_tokens.weight.stop_gradient = False
    assert_equal(model, token_batch())
    # Forward twice per layer, except where upstream recomputes the core alone, in its own attention.
    assert calls.count("AttentionFunction") == {"full": 4, "full_attn": 4, "core_attn": 0}[granularity]


def test_the_supervised_loss_is_upstreams(build, lora) -> None:
    from paddlesft.training.loss import supervised_loss

    model, batch = lora(build()), token_batch()
    expected = supervised_loss(model, batch)
    accelerate(model)
    found = supervised_loss(model, batch)
    assert found.trained_tokens == expected.trained_tokens
    assert float(found.loss_sum) == pytest.approx(float(expected.loss_sum), rel=1e-5)


def test_gradients_accumulate(build, lora) -> None:
    model = lora(build())
    accelerate(model)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "lora_A" in n)
    _, first = loss_and_gradients(model, token_batch())
    for _ in range(2):
        hidden = model.model.llama(token_batch()["input_ids"], attention_mask=token_batch()["attention_mask"])[0]
        labels = token_batch()["labels"].reshape([-1])
        index = paddle.nonzero(labels != -100).flatten()
        rows = paddle.gather(hidden.reshape([-1, 64]), index)
        model.model.lm_head.token_losses(rows, paddle.gather(labels, index)).mean().backward()
    np.testing.assert_allclose(parameter.grad.numpy(), 2 * first[name], rtol=1e-4, atol=1e-6)


def test_prefix_and_cache_take_upstreams_path(build, calls) -> None:
    model = build()
    model.eval()
    batch = token_batch((40, 40))
    past = [(paddle.randn([2, 5, 2, 16]), paddle.randn([2, 5, 2, 16])) for _ in range(2)]
    mask = paddle.ones([2, 45], dtype="int64")
    with paddle.no_grad():
        expected = model.llama(batch["input_ids"], attention_mask=mask, past_key_values=past, use_cache=True)
        accelerate(model)
        found = model.llama(batch["input_ids"], attention_mask=mask, past_key_values=past, use_cache=True)
    np.testing.assert_allclose(found[0].numpy(), expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1][1][0].numpy(), expected[1][1][0].numpy(), atol=1e-5)
    assert "AttentionFunction" not in calls


def test_generation_is_unchanged(build) -> None:
    model = build()
    model.eval()
    prompt = token_batch((40, 40))["input_ids"]
    options = {
        "max_new_tokens": 8,
        "decode_strategy": "greedy_search",
        "eos_token_id": 96,
        "pad_token_id": 0,
        "use_cache": True,
    }
    options["attention_mask"] = paddle.ones_like(prompt)
    expected = model.generate(prompt, **options)[0].numpy()
    accelerate(model)
    assert (model.generate(prompt, **options)[0].numpy() == expected).all()


def test_attention_weights_are_given(build) -> None:
    model = build()
    model.eval()
    accelerate(model)
    outputs = model.llama(token_batch()["input_ids"], output_attentions=True)
    assert outputs[1][0].shape == [2, 4, 40, 40]


def test_unusual_lora_layers_run_themselves(build, lora, calls) -> None:
    model = lora(build())
    for layer in model.sublayers():
        if hasattr(layer, "lora_A"):
            layer.register_forward_post_hook(lambda layer, inputs, output: output * 1.5)
    assert_equal(model, token_batch())
    assert "SharedInputLinears" not in calls


def test_merged_adapters_are_not_applied_twice(build, lora) -> None:
    model = lora(build())
    model.eval()
    accelerate(model)
    ids = token_batch()["input_ids"]
    with paddle.no_grad():
        expected = model.model.llama(ids)[0].numpy()
        model.merge()
        found = model.model.llama(ids)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_accelerate_is_idempotent_and_reversible(build) -> None:
    model = build()
    assert accelerate(model) == ALL
    assert accelerate(model) == ALL
    names = set(model.state_dict())
    copied = copy.deepcopy(model)
    assert isinstance(copied.llama.layers[0].mlp, FastMLP)
    restore(model)
    layer = model.llama.layers[0]
    assert (type(layer.self_attn), type(layer.mlp), type(layer.input_layernorm)) == (
        LlamaAttention,
        LlamaMLP,
        LlamaRMSNorm,
    )
    assert set(model.state_dict()) == names


def test_the_switch_turns_it_off(build, monkeypatch) -> None:
    monkeypatch.setenv(swap.VARIABLE, "0")
    model = build()
    assert accelerate(model) == []
    assert type(model.llama.layers[0].mlp) is LlamaMLP


def test_no_effect_where_it_does_not_apply(build, monkeypatch) -> None:
    assert accelerate(paddle.nn.Linear(2, 2)) == []
    assert accelerate(build().to(dtype="float16")) == []
    assert accelerate(build(fuse_attention_qkv=True, fuse_attention_ffn=True)) == ["LlamaLMHead", "LlamaRMSNorm"]
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    assert accelerate(build()) == []
