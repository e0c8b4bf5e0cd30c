"""Weights of the model being trained: into a directory that is complete in itself, and back into the same model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
from paddlenlp.peft import LoRAModel, PrefixModelForCausalLM

from paddlesft.errors import CheckpointError
from paddlesft.models.directory import copy_tokenizer
from paddlesft.models.load import save_model_directory, without_second_names
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.weights import read_weights
from paddlesft.tuning.lora import adapter_weights, fill
from paddlesft.tuning.prefix import PDPARAMS as PREFIX_WEIGHTS
from paddlesft.tuning.prepare import save_adapter


@dataclass(frozen=True)
class TextSide:
    """What a model directory needs besides weights, so that later verbs speak as training did.

    Attributes:
        tokenizer_dir: whose tokenizer files are copied.
        template_file: a chat template that the user gave as a file; None for the tokenizer's own or a built-in one.
        own_tokenizer: the tokenizer is not the base model's.
    """

    tokenizer_dir: Path
    template_file: Path | None = None
    own_tokenizer: bool = False

    def write_template(self, directory: Path) -> None:
        """Put the user's template, if there is one, in the place of the tokenizer's own."""
        if self.template_file is None:
            return
        for name in ("chat_template.json", "chat_template.jinja"):
            (directory / name).unlink(missing_ok=True)
        shutil.copyfile(self.template_file, directory / f"chat_template{self.template_file.suffix}")


def whole_weights(model: paddle.nn.Layer) -> dict[str, paddle.Tensor] | None:
    """Put the weights of a model whose layers are divided among ranks together; all those ranks call it.

    Returns:
        The whole weights by name on the first rank of each tensor-parallel group, None values on the others; None when
        nothing is divided.
    """
    if max(model.config.tensor_parallel_degree, 1) == 1:
        return None
    return model.merge_tensor_parallel(without_second_names(model), model.config)


def save_weights(
    model: paddle.nn.Layer,
    text_side: TextSide,
    directory: Path,
    facts: Mapping[str, Any],
    whole: dict[str, paddle.Tensor] | None = None,
) -> None:
    """Write the model directory (full fine-tuning) or adapter directory (LoRA, prefix) of a model being trained.

    An adapter speaks with its base's tokenizer and template; they are copied only where the run used others.

    Args:
        model: the model, with its adapter.
        text_side: tokenizer and template.
        directory: an existing directory being written.
        facts: entries for ``paddlesft.json``.
        whole: what ``whole_weights`` returned.
    """
    if save_adapter(model, directory):
        if text_side.own_tokenizer or text_side.template_file is not None:
            copy_tokenizer(text_side.tokenizer_dir, directory)
            text_side.write_template(directory)
        facts = {"kind": "adapter", "dtype": str(model.config.dtype), "fingerprint": fingerprint(directory), **facts}
        write_provenance(directory, **facts)
    else:
        save_model_directory(model, text_side.tokenizer_dir, directory, whole, **facts)
        text_side.write_template(directory)


def load_weights(model: paddle.nn.Layer, directory: Path) -> None:
    """Put weights that ``save_weights`` wrote back into a model of the same kind.

    Raises:
        CheckpointError: the directory holds weights of another kind or shape.
    """
    if isinstance(model, LoRAModel):
        wanted, weights = model.get_trainable_state_dict(), adapter_weights(directory)
    elif isinstance(model, PrefixModelForCausalLM):
        path = directory / PREFIX_WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no prefix weights ({PREFIX_WEIGHTS}).")
        wanted, weights = model.prefix_encoder.state_dict(), paddle.load(str(path), return_numpy=True)
    else:
        wanted = without_second_names(model)
        weights = {name: tensor.load() for name, tensor in read_weights(directory)[0].items()}
        if not weights:
            raise CheckpointError(f"{directory} holds no model weights (model.safetensors).")
    wrong = [k for k in wanted if k not in weights or list(weights[k].shape) != list(wanted[k].shape)]
    if wrong:
        raise CheckpointError(
            f"{directory} does not fit the model being trained: {len(wrong)} of {len(wanted)} tensors are missing or "
            f"have another shape (first: {wrong[0]}). Resume with the config that wrote it."
        )
    fill(wanted, {name: weights[name] for name in wanted})
