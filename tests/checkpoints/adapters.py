"""Random LoRA adapters for tests: B is not zero, so that the adapter does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_adapter(
    path: Path, base: Path, name: str | None = None, size: float = 0.05, seed: int = 1, **overrides: Any
) -> Path:
    """Write an adapter directory as training does.

    Args:
        path: the directory to create.
        base: the base model's directory.
        name: what the provenance calls the base; None writes no provenance, as other tools do.
        size: standard deviation of B.
        seed: of A and B.
        overrides: values of ``ModelConfig``.
    """
    import paddle

    from paddlesft.config.model import ModelConfig
    from paddlesft.models import base_facts, family_of, load_model, write_provenance
    from paddlesft.tuning.lora import add_lora

    paddle.seed(seed)
    model = load_model(base)
    config = ModelConfig(**{"lora": True, "lora_rank": 4, "lora_alpha": 8, **overrides})
    lora = add_lora(model, family_of(model), config)
    for parameter_name, value in lora.named_parameters():
        if parameter_name.endswith("lora_B"):
            value.set_value(paddle.randn(value.shape) * size)
    path.mkdir(parents=True)
    lora.save_pretrained(str(path), save_model_config=False)
    if name is not None:
        write_provenance(path, kind="adapter", base=base_facts(base, name), method="lora", chat_template="chatml")
    return path
