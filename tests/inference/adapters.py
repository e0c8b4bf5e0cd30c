"""Adapters with random weights, so that they change what a model says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle

from paddlesft.models import family_of, load_model, write_provenance
from paddlesft.models.quantized.origin import facts_of_base
from paddlesft.tuning.lora import add_lora, save_lora
from paddlesft.tuning.prefix import add_prefix, save_prefix


def with_lora(model: paddle.nn.Layer, **entries: Any) -> paddle.nn.Layer:
    """Wrap a model with a LoRA whose matrices B are not zero; ``entries`` change its config."""
    values = dict(
        lora_rank=4, lora_alpha=16, lora_dropout=0.0, lora_bias="none", lora_target_modules=None, use_quick_lora=False,
        rslora=False, lora_plus_scale=1.0, model_name_or_path=None,
    )  # fmt: skip
    config = SimpleNamespace(**{**values, **entries})
    wrapped = add_lora(model, family_of(model.config), config)
    for name, value in wrapped.get_trainable_state_dict().items():
        if "lora_B" in name:
            value.set_value(paddle.randn(value.shape) * 0.1)
    wrapped.eval()
    return wrapped


def with_prefix(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Wrap a model with a prefix of six tokens."""
    config = SimpleNamespace(num_prefix_tokens=6, prefix_projection=False, prefix_projection_hidden_size=None)
    wrapped = add_prefix(model, family_of(model.config), config)
    for value in wrapped.prefix_encoder.state_dict().values():
        value.set_value(paddle.randn(value.shape))
    wrapped.eval()
    return wrapped


def write_adapter(
    directory: Path, base: Path, kind: str, seed: int = 3, lora: Mapping[str, Any] | None = None, **facts: Any
) -> Path:
    """Write an adapter directory for a base model.

    Args:
        directory: to create.
        base: the model's directory.
        kind: "lora" or "prefix".
        seed: of its weights.
        lora: changes of the LoRA's config.
        facts: entries for its ``paddlesft.json``.
    """
    paddle.seed(seed)
    directory.mkdir(parents=True)
    model = load_model(base)
    if kind == "lora":
        save_lora(with_lora(model, **(lora or {})), directory)
    else:
        save_prefix(with_prefix(model), directory)
    write_provenance(directory, **{"kind": "adapter", "base": facts_of_base(base), **facts})
    return directory
