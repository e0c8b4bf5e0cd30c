"""Weights of the model being trained: into a directory that is complete in itself, and back into the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.errors import CheckpointError
from paddlesft.models.load import save_model_directory
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.weights import read_weights
from paddlesft.tuning.lora import adapter_weights
from paddlesft.tuning.prefix import PDPARAMS as PREFIX_WEIGHTS
from paddlesft.tuning.prepare import save_adapter


def save_weights(model: paddle.nn.Layer, tokenizer_dir: Path, directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the model directory (full fine-tuning) or adapter directory (LoRA, prefix) of a model being trained.

    Args:
        model: the model, with its adapter.
        tokenizer_dir: whose tokenizer and template files go into a model directory; an adapter uses those of its base.
        directory: an existing directory being written.
        facts: entries for ``paddlesft.json``.
    """
    if save_adapter(model, directory):
        facts = {"kind": "adapter", "dtype": str(model.config.dtype), "fingerprint": fingerprint(directory), **facts}
        write_provenance(directory, **facts)
    else:
        save_model_directory(model, tokenizer_dir, directory, **facts)


def load_weights(model: paddle.nn.Layer, directory: Path) -> None:
    """Put weights that ``save_weights`` wrote back into a model of the same kind.

    Raises:
        CheckpointError: the directory holds weights of another kind or shape.
    """
    if isinstance(model, LoRAModel):
        target, weights = model.model, adapter_weights(directory)
        wanted = model.get_trainable_state_dict()
    elif isinstance(model, PrefixModelForCausalLM):
        path = directory / PREFIX_WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no prefix weights ({PREFIX_WEIGHTS}).")
        target, weights = model.prefix_encoder, paddle.load(str(path), return_numpy=True)
        wanted = target.state_dict()
    else:
        target, wanted = model, model.state_dict()
        weights = {name: tensor.load() for name, tensor in read_weights(directory)[0].items()}
        if not weights:
            raise CheckpointError(f"{directory} holds no model weights (model.safetensors).")
        if model.config.tie_word_embeddings:
            wanted = {k: v for k, v in wanted.items() if k in weights or not k.startswith("lm_head")}
    wrong = [k for k in wanted if k not in weights or list(weights[k].shape) != list(wanted[k].shape)]
    if wrong:
        raise CheckpointError(
            f"{directory} does not fit the model being trained: {len(wrong)} of {len(wanted)} tensors are missing or "
            f"have another shape (first: {wrong[0]}). Resume with the config that wrote it."
        )
    target.set_state_dict({k: paddle.to_tensor(weights[k]) for k in wanted})
