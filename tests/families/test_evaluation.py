"""The evaluation loss is the cross entropy that the model's own forward pass gives, row by row and without padding.

Models whose own forward pass has to be told masks and positions are called through their decoder, row by row too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from paddlesft.config import load_run_config
from paddlesft.data.dataset import build_dataset
from paddlesft.models.decoders import causal_lm, decoder_of
from tests.families.tuning_runs import TuningRun, cases

# PaddleNLP's own forward pass leaves a prefix out that is not of its Cache class.
OWN_CACHE = ("opt",)


@pytest.mark.parametrize(("family", "method"), cases())
def test_the_loss_on_unseen_rows_is_that_of_the_models_own_forward_pass(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    config = load_run_config(None, [str(tuned.directory / "run_config.yaml")])
    rows, _ = build_dataset(config.data, tuned.loaded.renderer, "eval")
    losses = []
    for i in range(len(rows)):
        ids, labels = (np.asarray(rows[i][key]) for key in ("input_ids", "labels"))
        logits = row_logits(tuned.loaded.model, ids).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses += [-logits[position, labels[position]] for position in np.flatnonzero(labels != -100)]
    metrics = tuned.result.metrics
    assert metrics["eval_tokens"] == len(losses) > 10
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["eval_loss"] > 1  # these rows were not learned


@paddle.no_grad()
def row_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return logits [s, v] of one row."""
    input_ids, decoder, lm = paddle.to_tensor(ids[None]), decoder_of(model), causal_lm(model)
    no_own = decoder.family.one_reply_per_row or (decoder.family.name in OWN_CACHE and decoder.prefix is not None)
    if no_own:
        return decoder.logits(decoder.run(input_ids)[0])[0].numpy()
    positions = {}
    if "position_ids" in inspect.signature(lm.forward).parameters:  # some count a tuned prefix when none are given
        positions["position_ids"] = paddle.arange(len(ids)).unsqueeze(0)
    output = model(input_ids=input_ids, attention_mask=paddle.ones_like(input_ids), **positions)
    return (output[0] if isinstance(output, tuple | list) else getattr(output, "logits", output))[0].numpy()
