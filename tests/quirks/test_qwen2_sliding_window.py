"""The window of attention that PaddleNLP's Qwen2 overlooks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddlenlp.transformers import Qwen2Config, Qwen2ForCausalLM

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.load import load_config


def test_upstream_still_attends_beyond_the_window() -> None:
    """When this fails, paddlenlp has learned about windows: remove the quirk."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    paddle.seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, use_sliding_window=True, sliding_window=2)
    )
    model.eval()
    ids = np.arange(8)[None]
    other = ids.copy()
    other[0, 0] = 40  # six tokens before the last, which a window of two does not reach in one layer
    with paddle.no_grad():
        a, b = (model(paddle.to_tensor(x), return_dict=True).logits[0, -1].numpy() for x in (ids, other))
    assert np.abs(a - b).max() > 1e-6


@pytest.mark.parametrize(("window", "refused"), [(64, True), (512, False)])
def test_a_window_shorter_than_the_context_is_refused(
    window: int, refused: bool, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "qwen2"
    shutil.copytree(tiny_family("qwen2"), directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config |= {"use_sliding_window": True, "sliding_window": window, "max_position_embeddings": 512}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if not refused:
        assert load_config(directory).sliding_window == window
        return
    with pytest.raises(ModelDirectoryError, match=r"sliding_window 64, .* context of 512 tokens.*embeddings to 64"):
        load_config(directory)
