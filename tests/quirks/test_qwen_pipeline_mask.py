"""Qwen 1's pipeline class still calls a function that is not there; the one it is given builds the model's own mask."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest

from paddlesft.quirks.qwen_pipeline_mask import offer_mask

UPSTREAM = """
import paddle
from paddlenlp.transformers import QWenConfig
from paddlenlp.transformers.qwen.modeling_pp import QWenEmbeddingPipe
embedding = QWenEmbeddingPipe(QWenConfig(vocab_size=8, hidden_size=4))
embedding((paddle.to_tensor([[1, 2]]), paddle.ones([1, 1, 2, 2], dtype="bool"), paddle.to_tensor([[0, 1]])))
"""


def test_upstream_still_lacks_the_function() -> None:
    """When this fails, paddlenlp has it: retire the quirk."""
    done = subprocess.run([sys.executable, "-c", UPSTREAM], capture_output=True, text=True, check=False)
    assert "has no attribute '_prepare_decoder_attention_mask'" in done.stderr


def test_the_mask_is_what_the_model_would_make(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlenlp.transformers import QWenConfig
    from paddlenlp.transformers.qwen.modeling import QWenModel
    from paddlenlp.transformers.qwen.modeling_pp import QWenEmbeddingPipe

    monkeypatch.delattr(QWenModel, "_prepare_decoder_attention_mask", raising=False)
    offer_mask(None)
    embedding = QWenEmbeddingPipe(QWenConfig(vocab_size=8, hidden_size=4))
    visible = paddle.tril(paddle.ones([1, 1, 3, 3], dtype="bool"))
    positions = paddle.arange(3).unsqueeze(0)
    hidden, mask, handed_on = embedding((paddle.to_tensor([[1, 2, 3]]), visible, positions))
    assert hidden.shape == [1, 3, 4] and mask.dtype == hidden.dtype and bool((handed_on == positions).all())
    np.testing.assert_array_equal(mask.numpy() == 0, visible.numpy())
    assert mask.min() == paddle.finfo(hidden.dtype).min
