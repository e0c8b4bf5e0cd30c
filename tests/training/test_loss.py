"""The supervised loss against the plain one, on every kind of model."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddlesft.models.decoders import causal_lm
from paddlesft.models.fast import accelerate
from paddlesft.training.loss import supervised_loss, trained_rows, trained_token_losses
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.training.small_runs import batch_of, small_config, small_dataset, small_model

METHODS = {
    "full": [],
    "lora": ["lora=true"],
    "prefix": ["prefix_tuning=true", "num_prefix_tokens=5"],
    "projected prefix": ["prefix_tuning=true", "num_prefix_tokens=5", "prefix_projection=true"],
}


def tuned(method: str):
    model = prepare_for_tuning(small_model(), small_config(*METHODS[method]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at zero, which would hide a missing adapter
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    model.eval()
    return model


def plain_losses(model, batch) -> np.ndarray:
    """The model's own forward pass with logits everywhere, masked afterwards."""
    inputs = {k: paddle.to_tensor(v) for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    logits = model(**inputs)
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    labels = paddle.to_tensor(batch["labels"])
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100).squeeze(-1)
    return losses.numpy()[batch["labels"] != -100]


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_models_own_forward_pass(method: str) -> None:
    model, batch = tuned(method), batch_of(small_dataset(6))
    expected = plain_losses(model, batch)
    found, _ = trained_token_losses(model, batch)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    loss = supervised_loss(model, batch)
    assert loss.trained_tokens == len(expected)
    assert float(loss.loss_sum) == pytest.approx(float(expected.sum()), rel=1e-6)


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_packed_rows_have_the_loss_of_unpacked_ones(method: str) -> None:
    model = tuned(method)
    alone = [trained_token_losses(model, batch_of(small_dataset(7), [i]))[0] for i in range(7)]
    packs = [[0, 1, 2], [3], [4, 5, 6]]
    packed, _ = trained_token_losses(model, batch_of(small_dataset(7, packs=packs)))
    assert np.abs(packed - np.concatenate(alone)).max() < 1e-5


def test_a_packed_row_without_its_mask_would_differ() -> None:
    model = tuned("full")
    batch = batch_of(small_dataset(3, packs=[[0, 1, 2]]))
    right, _ = trained_token_losses(model, batch)
    merged = {**batch, "segment_ids": np.minimum(batch["segment_ids"], 1)}
    wrong, _ = trained_token_losses(model, merged)
    assert np.abs(wrong - right).max() > 1e-2


def test_the_head_runs_on_trained_positions_only() -> None:
    model, batch = small_model(), batch_of(small_dataset(6))
    seen = []
    model.lm_head.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape))
    supervised_loss(model, batch)
    trained = int((batch["labels"] != -100).sum())
    assert seen == [[1, trained, 32]] and trained < batch["labels"].size


def test_gradients_are_those_of_the_plain_loss() -> None:
    batch = batch_of(small_dataset(4))
    one, two = small_model(), small_model()
    supervised_loss(one, batch).loss_sum.backward()
    inputs = {k: paddle.to_tensor(batch[k]) for k in ("input_ids", "attention_mask")}
    labels = paddle.to_tensor(batch["labels"])
    logits = two(**inputs)
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).backward()
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters()):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-4, err_msg=name)


def test_a_fast_head_is_used_and_changes_nothing() -> None:
    batch = batch_of(small_dataset(6))
    plain, fast = small_model(), small_model()
    assert accelerate(fast)
    calls = []
    scored = type(fast.lm_head).token_losses
    fast.lm_head.token_losses = lambda *inputs: calls.append(1) or scored(fast.lm_head, *inputs)
    losses = [supervised_loss(model, batch) for model in (plain, fast)]
    assert calls and float(losses[0].loss_sum) == pytest.approx(float(losses[1].loss_sum), rel=1e-6)
    for loss in losses:
        loss.loss_sum.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), fast.named_parameters()):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-4, err_msg=name)


def test_evaluation_in_pieces_is_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small_model(), batch_of(small_dataset(6))
    whole, correct = trained_token_losses(model, batch)
    monkeypatch.setattr("paddlesft.training.loss.ROWS_AT_A_TIME", 7)
    pieces, again = trained_token_losses(model, batch)
    assert correct == again and len(whole) > 20
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


def test_a_batch_without_trained_tokens_has_no_loss_and_zero_gradients() -> None:
    model, batch = small_model(), batch_of(small_dataset(2))
    batch["labels"][:] = -100
    loss = supervised_loss(model, batch)
    assert (float(loss.loss_sum), loss.trained_tokens) == (0.0, 0)
    loss.loss_sum.backward()
    assert all(p.grad is None or float(p.grad.abs().max()) == 0.0 for p in model.parameters())
    assert trained_token_losses(model, batch)[1] == 0


def test_accuracy_counts_the_most_likely_token() -> None:
    model, batch = small_model(), batch_of(small_dataset(5))
    model.eval()
    with paddle.no_grad():
        rows, targets = trained_rows(model, batch)
        logits = model.lm_head(rows)
    _, correct = trained_token_losses(model, batch)
    assert correct == int((logits.numpy().argmax(-1) == targets.numpy()).sum())
    perfect = {**batch, "labels": np.full_like(batch["labels"], -100)}
    perfect["labels"][batch["labels"] != -100] = logits.numpy().argmax(-1)
    assert trained_token_losses(model, perfect)[1] == len(targets)


def test_causal_lm_looks_through_the_wrappers() -> None:
    for method in METHODS:
        assert type(causal_lm(tuned(method))).__name__ == "LlamaForCausalLM"
