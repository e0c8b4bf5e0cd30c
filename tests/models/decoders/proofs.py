"""What has to be true of a family's decoder, as functions of a small model; the tests of each family call them.

Every function runs the decoder in two ways that must give the same numbers and returns the largest difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddlenlp.transformers as zoo

from paddlesft.inference.eager import EagerRunner
from paddlesft.models.decoders import decoder_of
from paddlesft.models.families import family_of
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.training.loss import hidden_states, supervised_loss, trained_token_losses
from paddlesft.tuning.prefix import add_prefix
from tests.tiny_families import FAMILY_FIXTURES, redraw_weights
from tests.training.small_runs import VOCABULARY, batch_of, small_config, small_dataset

PADDING = 1  # an ordinary id: only the mask may say what padding is


def small(name: str, seed: int = 3, **overrides: Any) -> Any:
    """Return a random model of a family in evaluation mode: hidden 64, 2 layers, 4 heads, no tokenizer."""
    fixture = FAMILY_FIXTURES[name]
    values = {**fixture.sizes, "vocab_size": VOCABULARY, "dtype": "float32", **overrides}
    paddle.seed(seed)
    with quiet_paddlenlp():
        config = getattr(zoo, fixture.config)(**values)
        family_of(config).fix_config(config)
        model = getattr(zoo, fixture.model)(config)
    redraw_weights(model)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms too, or nothing would show that they are used
            parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    family_of(model.config).fix_model(model, lambda name: False)
    model.eval()
    return model


def with_prefix(model: Any, *keys: str, tokens: int = 3) -> Any:
    """Put a random prefix in front of a model."""
    paddle.seed(5)
    config = small_config("prefix_tuning=true", f"num_prefix_tokens={tokens}", *keys)
    with quiet_paddlenlp():
        tuned = add_prefix(model, family_of(model.config), config.model)
    tuned.eval()
    return tuned


def rows_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    draw = np.random.default_rng(seed)
    return [draw.integers(5, VOCABULARY - 1, length).tolist() for length in lengths]


def logits_alone(model: Any, row: Sequence[int]) -> np.ndarray:
    """Return the logits of one row [s, v], without cache, mask or positions."""
    decoder = decoder_of(model)
    with paddle.no_grad():
        return decoder.logits(decoder.run(paddle.to_tensor([list(row)]))[0])[0].numpy()


def padded_against_alone(model: Any, side: str) -> float:
    """Compare a padded batch with its rows one by one."""
    rows = rows_of(3, 11, 7)
    ids, mask = np.full([3, 11], PADDING, dtype=np.int64), np.zeros([3, 11], dtype=np.int64)
    for number, row in enumerate(rows):
        place = slice(11 - len(row), None) if side == "left" else slice(None, len(row))
        ids[number, place], mask[number, place] = row, 1
    decoder = decoder_of(model)
    input_ids, key_mask = paddle.to_tensor(ids), paddle.to_tensor(mask)
    with paddle.no_grad():
        hidden, _ = decoder.run(input_ids, key_mask, position_ids=decoder.positions(input_ids, key_mask))
        found = decoder.logits(hidden).numpy()
    return max(
        float(np.abs(found[number][mask[number] == 1] - logits_alone(model, row)).max())
        for number, row in enumerate(rows)
    )


def steps_against_full(model: Any, keep: bool = True) -> float:
    """Compare step-by-step decoding of padded rows with whole rows; rows are dropped and reordered on the way."""
    rows = rows_of(9, 14, 12, 11, seed=1)
    wanted = [logits_alone(model, row) for row in rows]
    prompts = [2, 6, 4, 5]  # the longest prompt is dropped, so that padding of all others goes with it
    runner, alive = EagerRunner(model, pad_token_id=PADDING), [0, 1, 2, 3]
    found = runner.prefill([row[:length] for row, length in zip(rows, prompts)]).numpy()
    worst = 0.0
    for step in range(6):
        for place, row in enumerate(alive):
            worst = max(worst, float(np.abs(found[place] - wanted[row][prompts[row] + step - 1]).max()))
        if keep and step == 2:
            runner.keep([3, 0, 2])
            alive = [alive[i] for i in (3, 0, 2)]
        found = runner.step(np.array([rows[row][prompts[row] + step] for row in alive])).numpy()
    return worst


def packed_against_separate(model: Any) -> float:
    """Compare the losses of trained tokens, packed into two rows (one with padding) and in rows of their own."""
    rows, packs = small_dataset(6), small_dataset(6, packs=[[0, 1, 2, 3], [4, 5]])
    separate = np.concatenate([trained_token_losses(model, batch_of(rows, [i]))[0] for i in range(6)])
    packed, _ = trained_token_losses(model, batch_of(packs))
    whole = supervised_loss(model, batch_of(packs))
    assert whole.trained_tokens == len(separate) == len(packed)
    assert np.isclose(float(whole.loss_sum), separate.sum(), rtol=1e-5)
    return float(np.abs(packed - separate).max())


def copied_prefix_against_tokens(model: Any, tokens: int = 3) -> float:
    """Compare a row with one whose first tokens are there only as a prefix of their keys and values."""
    row = rows_of(10)[0]
    decoder = decoder_of(model)
    ids = paddle.to_tensor([row])
    with paddle.no_grad():
        full, _ = decoder.run(ids)
        _, cache = decoder.run(ids[:, :tokens], use_cache=True)
    tuned = with_prefix(model, tokens=tokens)
    tuned._get_past_key_values = lambda batch: cache
    batch = {
        "input_ids": ids[:, tokens:],
        "attention_mask": paddle.ones([1, len(row) - tokens], dtype="int64"),
        "position_ids": paddle.arange(tokens, len(row)).unsqueeze(0),
    }
    with paddle.no_grad():
        return float((hidden_states(tuned, batch) - full[:, tokens:]).abs().max())


def gradients(model: Any) -> dict[str, float]:
    """Return the largest gradient of every trained weight after one batch, which has padding."""
    model.train()
    model.clear_gradients()
    supervised_loss(model, batch_of(small_dataset(3))).loss_sum.backward()
    model.eval()
    found = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    return {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in found.items()}
