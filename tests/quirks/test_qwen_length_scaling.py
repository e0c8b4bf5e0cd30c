"""What PaddleNLP's Qwen 1 does beyond its trained length, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddlenlp.transformers as zoo

from paddlesft.models.families import family_named
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.quirks.qwen_length_scaling import keep_trained_length
from tests.models.decoders import proofs
from tests.tiny_families import FAMILY_FIXTURES, redraw_weights

TRAINED = 16


def upstream() -> Any:
    """A model as PaddleNLP builds it, with a trained length of 16."""
    paddle.seed(3)
    sizes = {**FAMILY_FIXTURES["qwen"].sizes, "seq_length": TRAINED}
    with quiet_paddlenlp():
        model = zoo.QWenForCausalLM(zoo.QWenConfig(vocab_size=96, **sizes))
    redraw_weights(model)
    model.eval()
    return model


def test_one_long_row_still_changes_what_training_computes() -> None:
    """When this fails, paddlenlp forgets the factor again: see whether the quirk can go."""
    short, long = (paddle.to_tensor([row]) for row in proofs.rows_of(8, 4 * TRAINED))
    after = {}
    for name, fix in {"upstream": lambda model: None, "here": keep_trained_length}.items():
        model = upstream()
        fix(model)
        with paddle.no_grad():
            model.train()
            before = model(short)[0].numpy()
            model.eval()
            model(long)
            model.train()
            after[name] = np.abs(model(short)[0].numpy() - before).max()
    assert after["upstream"] > 1e-3 and after["here"] == 0


def test_rows_of_the_trained_length_compute_the_same_without() -> None:
    model, (row,) = upstream(), proofs.rows_of(TRAINED)
    wanted = proofs.logits_alone(model, row)
    keep_trained_length(model)
    np.testing.assert_array_equal(proofs.logits_alone(model, row), wanted)


def test_the_context_ends_with_the_trained_length() -> None:
    assert family_named("qwen").context_length(upstream().config) == TRAINED
