"""ChatGLM and GLM: prompts seen from both sides, two-dimensional positions; padding, caches, packs, prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.errors import DataError, ModelDirectoryError
from paddlesft.inference.eager import EagerRunner
from paddlesft.models.decoders import decoder_of
from paddlesft.models.decoders.blank_filling import BlankFillingDecoder, Layout
from paddlesft.models.load import load_config, quiet_paddlenlp
from paddlesft.training.loss import supervised_loss, trained_token_losses
from paddlesft.training.model_switches import set_model_switches
from paddlesft.tuning.prefix import load_prefix, save_prefix
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.models.decoders import proofs
from tests.models.decoders.blank_filling_models import BLANK, FAMILIES, MASK, ROWS, START, batch, row_of, small
from tests.training.small_runs import small_config

every_family = pytest.mark.parametrize("name", FAMILIES)
TOLERANCE = 1e-5


def tuned(name: str, *keys: str) -> Any:
    return proofs.with_prefix(small(name), *keys)


every_model = pytest.mark.parametrize("made", [*((small, name) for name in FAMILIES), *((tuned, n) for n in FAMILIES)],
                                      ids=lambda made: f"{made[1]} {made[0].__name__}")  # fmt: skip
Made = tuple[Callable[[str], Any], str]


@every_family
def test_a_row_has_the_logits_of_paddlenlps_own_forward_pass(name: str) -> None:
    model, row = small(name), ROWS[0]
    start, blank = row.index(START), row.index(BLANK)
    mask = np.tril(np.ones([len(row), len(row)]))
    mask[:, :start] = 1  # as the tokenizers of paddlenlp write it
    places = [*range(start), *[blank] * (len(row) - start)], [*[0] * start, *range(1, len(row) - start + 1)]
    with paddle.no_grad():
        output = model(
            input_ids=paddle.to_tensor([row]),
            attention_mask=paddle.to_tensor(mask[None, None], dtype="float32"),
            position_ids=paddle.to_tensor([places]),
            return_dict=True,
        )
    np.testing.assert_allclose(proofs.logits_alone(model, row), output.logits[0].numpy(), atol=TOLERANCE)


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(made: Made, side: str) -> None:
    model = made[0](made[1])
    decoder, width = decoder_of(model), max(map(len, ROWS))
    ids = np.full([len(ROWS), width], proofs.PADDING)
    mask = np.zeros_like(ids)
    for number, row in enumerate(ROWS):
        place = slice(width - len(row), None) if side == "left" else slice(None, len(row))
        ids[number, place], mask[number, place] = row, 1
    with paddle.no_grad():
        found = decoder.logits(decoder.run(paddle.to_tensor(ids), paddle.to_tensor(mask))[0]).numpy()
    for number, row in enumerate(ROWS):
        wanted = proofs.logits_alone(model, row)
        np.testing.assert_allclose(found[number][mask[number] == 1], wanted, atol=TOLERANCE)


@every_model
def test_steps_with_a_cache_equal_whole_rows(made: Made) -> None:
    model = made[0](made[1])
    wanted = [proofs.logits_alone(model, row) for row in ROWS]
    runner, alive, starts = EagerRunner(model, pad_token_id=proofs.PADDING), [0, 1, 2, 3], []
    starts = [row.index(START) for row in ROWS]
    found = runner.prefill([row[: start + 1] for row, start in zip(ROWS, starts)]).numpy()
    for step in range(4):
        for place, row in enumerate(alive):
            np.testing.assert_allclose(found[place], wanted[row][starts[row] + step], atol=TOLERANCE)
        if step == 2:  # the longest prompt goes, and with it padding of all others
            runner.keep([3, 0, 1])
            alive = [3, 0, 1]
        found = runner.step(np.array([ROWS[row][starts[row] + step + 1] for row in alive])).numpy()


@every_model
def test_several_tokens_behind_a_cache_need_no_mask(made: Made) -> None:
    model, row = made[0](made[1]), ROWS[0]
    decoder, start = decoder_of(model), row.index(START)
    ids, positions = (
        paddle.to_tensor([row]),
        paddle.to_tensor(decoder.layout(np.array([row]), np.ones([1, len(row)])).positions),
    )
    with paddle.no_grad():
        _, cache = decoder.run(ids[:, : start + 1], use_cache=True)
        hidden, _ = decoder.run(ids[:, start + 1 :], position_ids=positions[:, :, start + 1 :], cache=cache)
        found = decoder.logits(hidden)[0].numpy()
    np.testing.assert_allclose(found, proofs.logits_alone(model, row)[start + 1 :], atol=TOLERANCE)


@every_model
def test_packed_rows_equal_separate_rows(made: Made) -> None:
    model = made[0](made[1])
    apart, _ = trained_token_losses(model, batch())
    packed, _ = trained_token_losses(model, batch([[0, 1], [2, 3]]))
    np.testing.assert_allclose(packed, apart, atol=TOLERANCE)
    assert len(apart) == sum(len(row) - row.index(START) - 1 for row in ROWS)


@every_family
def test_a_prefix_that_copies_real_keys_computes_what_the_real_tokens_would(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, row, width = small(name), ROWS[2], 3
    decoder = decoder_of(model)
    with paddle.no_grad():
        full, cache = decoder.run(paddle.to_tensor([row]), use_cache=True)
    axis = decoder.family.cache_sequence_axis
    copied = [tuple(t.split([width, t.shape[axis] - width], axis=axis)[0] for t in layer) for layer in cache]
    prefixed = proofs.with_prefix(model, tokens=width)
    prefixed._get_past_key_values = lambda rows: copied
    found = BlankFillingDecoder.layout

    def behind_the_copied_tokens(self: Any, ids: np.ndarray, segments: np.ndarray) -> Layout:
        layout = found(self, ids, segments)
        layout.positions[:, 0] += width
        return layout

    monkeypatch.setattr(BlankFillingDecoder, "layout", behind_the_copied_tokens)
    with paddle.no_grad():
        hidden, _ = decoder_of(prefixed).run(paddle.to_tensor([row[width:]]))
    np.testing.assert_allclose(hidden.numpy(), full[:, width:].numpy(), atol=TOLERANCE)


@every_family
def test_a_saved_prefix_computes_the_same_when_loaded(name: str, tmp_path: Path) -> None:
    model = tuned(name, "prefix_projection=true")
    save_prefix(model, tmp_path)
    with quiet_paddlenlp():
        loaded = load_prefix(small(name), tmp_path)
    loaded.eval()
    np.testing.assert_array_equal(proofs.logits_alone(loaded, ROWS[0]), proofs.logits_alone(model, ROWS[0]))
    assert np.abs(proofs.logits_alone(loaded, ROWS[0]) - proofs.logits_alone(small(name), ROWS[0])).max() > 0.01


SWITCHES = ("recompute_granularity=full", "recompute_use_reentrant=true")


def layer_calls(name: str, *keys: str) -> tuple[int, dict[str, np.ndarray]]:
    """How often a training step calls the second layer, and the gradients of what is trained."""
    model, config, calls = small(name), small_config(*keys), []
    set_model_switches(model, config)
    model.base_model.transformer.layers[1].register_forward_post_hook(lambda *_: calls.append(1) and None)
    with quiet_paddlenlp():
        model = prepare_for_tuning(model, config)
    paddle.seed(1)
    for path, parameter in model.named_parameters():
        if path.endswith("lora_B"):  # zeros at first, which stop the gradient of lora_A
            parameter.set_value(paddle.randn(parameter.shape) * 0.05)
    decoder_of(model).body.transformer.enable_recompute = config.training.recompute  # as PaddleNLP's trainer does
    model.train()
    for _ in range(2):  # gradients accumulate
        supervised_loss(model, batch()).loss_sum.backward()
    return len(calls), {path: p.grad.numpy() for path, p in model.named_parameters() if not p.stop_gradient}


@pytest.mark.parametrize("method", ["lora=true", "prefix_tuning=true", "lora=false"])
@every_family
def test_every_trained_weight_has_a_gradient_and_recompute_keeps_it(name: str, method: str) -> None:
    once, wanted = layer_calls(name, method)
    assert once == 2 and wanted
    untouched = [path for path, gradient in wanted.items() if not np.abs(gradient).max() > 0]
    assert untouched == []
    for switch in SWITCHES:
        twice, found = layer_calls(name, method, "recompute=true", switch)
        assert twice == 4, switch
        for path, gradient in wanted.items():
            np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-6, err_msg=f"{switch}: {path}")


@every_family
def test_prompts_without_marks_are_refused(name: str) -> None:
    model = small(name)
    words = {"chatglm": r"\[gMASK\]<sop>", "glm": r"\[gMASK\]<\|endoftext\|><\|startofpiece\|>"}[name]
    for row, missing in (
        ([5, 6, BLANK, 7], "the token that a reply begins behind"),
        ([5, START, BLANK, 7], "a mask token before the reply"),
    ):
        with pytest.raises(DataError, match=f"A prompt of 4 tokens has no {words}: {missing} is missing. Models of "
                                            f"family {name} cannot read it. Set chat_template to {name}"):  # fmt: skip
            proofs.logits_alone(model, row)


@every_family
def test_a_mask_stands_for_a_blank_where_there_is_no_other(name: str) -> None:
    model = small(name)
    with_mask, with_blank = row_of(4, 3, blank=MASK), row_of(4, 3)
    layouts = [decoder_of(model).layout(np.array([row]), np.ones([1, len(row)])) for row in (with_mask, with_blank)]
    np.testing.assert_array_equal(layouts[0].positions, layouts[1].positions)


@every_family
def test_any_ids_become_a_prompt_to_compare_models_on(name: str) -> None:
    decoder = decoder_of(small(name))
    assert decoder.as_prompt([5, START, 6, BLANK, 7]) == [5, 6, BLANK, START, 7]
    assert decoder.as_prompt([]) == [BLANK, START]


def test_glm_takes_its_ids_from_the_tokenizer_beside_it(tiny_family: Callable[[str], Path]) -> None:
    config = load_config(tiny_family("glm"))
    ids = [config.sop_token_id, config.eop_token_id, config.gmask_token_id, config.smask_token_id]
    assert ids == [2006, 2007, 2009, 2008]
    with pytest.raises(ModelDirectoryError, match=r"config\.json has no sop_token_id, and there is no tokenizer"):
        proofs.logits_alone(proofs.small("glm"), ROWS[0])


def test_glm_has_no_positions_behind_the_learned_ones() -> None:
    model = small("glm", max_sequence_length=8)
    proofs.logits_alone(model, row_of(7, 7))  # position 7 and block positions up to 8
    for row in (row_of(2, 8), row_of(9, 1)):
        with pytest.raises(DataError, match="at position 9, behind the last of the 9 that this model has learned"):
            proofs.logits_alone(model, row)


def test_chatglm_computes_the_same_with_flash_attention() -> None:
    model = tuned("chatglm")
    wanted = proofs.logits_alone(model, ROWS[0])
    model.model.config.use_flash_attention = True
    np.testing.assert_allclose(proofs.logits_alone(model, ROWS[0]), wanted, atol=TOLERANCE)
