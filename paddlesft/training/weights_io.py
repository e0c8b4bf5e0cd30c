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
from paddlesft.models.load import save_model_directory
from paddlesft.models.pdparams import pickled_arrays
from paddlesft.models.provenance import fingerprint, write_provenance
from paddlesft.models.weights import read_weights
from paddlesft.parallel.division import Division
from paddlesft.training.gathered_weights import write_gathered
from paddlesft.training.rank_weights import load_rank_weights, save_rank_weights
from paddlesft.training.ranks import is_first_rank
from paddlesft.tuning.lora import adapter_weights
from paddlesft.tuning.prefix import PDPARAMS as PREFIX_WEIGHTS
from paddlesft.tuning.prepare import save_adapter

PARTS = "*model_state.[tp]p[0-9]*.pdparams"


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


def save_weights(
    model: paddle.nn.Layer,
    text_side: TextSide,
    directory: Path | None,
    facts: Mapping[str, Any],
    unified: bool = True,
) -> None:
    """Write the model directory (full fine-tuning) or adapter directory (LoRA, prefix) of a model being trained.

    All ranks call it; the first one writes whole weights, one in memory at a time, in any layout. An adapter speaks
    with its base's tokenizer and template; they are copied only where the run used others.

    Args:
        model: the model, with its adapter; whole, or this rank's part of it.
        text_side: tokenizer and template.
        directory: an existing directory being written; None on all ranks but the first, if ``unified``.
        facts: entries for ``paddlesft.json``.
        unified: False: where ranks hold parts of the weights, each writes its own, and no model directory comes about.
    """
    division = Division(model)
    if not unified and division.has_parts:
        save_rank_weights(model, division, directory, facts)
        if is_first_rank():
            copy_tokenizer(text_side.tokenizer_dir, directory)
            text_side.write_template(directory)
        return
    gathering = None if division.is_whole else division.gathering()
    if directory is None or not is_first_rank():
        for _ in gathering or ():
            pass
        return
    is_adapter = isinstance(model, LoRAModel | PrefixModelForCausalLM)
    if gathering is not None:
        write_gathered(model, division, gathering, directory)
    elif is_adapter:
        save_adapter(model, directory)
    if is_adapter:
        if text_side.own_tokenizer or text_side.template_file is not None:
            copy_tokenizer(text_side.tokenizer_dir, directory)
            text_side.write_template(directory)
        facts = {"kind": "adapter", "dtype": str(model.config.dtype), "fingerprint": fingerprint(directory), **facts}
        write_provenance(directory, **facts)
        return
    if gathering is None:
        save_model_directory(model, text_side.tokenizer_dir, directory, **facts)
    else:
        copy_tokenizer(text_side.tokenizer_dir, directory)
        facts = {"kind": "model", "dtype": str(model.config.dtype), "fingerprint": fingerprint(directory), **facts}
        write_provenance(directory, **facts)
    text_side.write_template(directory)


def load_weights(model: paddle.nn.Layer, directory: Path) -> None:
    """Put weights that ``save_weights`` wrote back into a model of the same kind.

    Whole weights fit every layout, the parts of ranks the layout that wrote them.

    Raises:
        CheckpointError: the directory holds weights of another kind or shape.
    """
    division = Division(model)
    if division.has_parts and any(directory.glob(PARTS)):
        load_rank_weights(model, division, directory)
        return
    if isinstance(model, LoRAModel):
        arrays = adapter_weights(directory)
        shapes, weights = {name: a.shape for name, a in arrays.items()}, {n: lambda a=a: a for n, a in arrays.items()}
    elif isinstance(model, PrefixModelForCausalLM):
        path = directory / PREFIX_WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no prefix weights ({PREFIX_WEIGHTS}).")
        found = list(pickled_arrays(path))
        shapes, weights = {name: shape for name, _, shape, _ in found}, {name: load for name, _, _, load in found}
    else:
        tensors, _ = read_weights(directory)
        shapes, weights = {n: t.shape for n, t in tensors.items()}, {n: t.mapped for n, t in tensors.items()}
        if not weights:
            raise CheckpointError(f"{directory} holds no model weights (model.safetensors).")
    wrong = [k for k in division.own if k not in shapes or tuple(shapes[k]) != division.whole_shape(k)]
    if wrong:
        raise CheckpointError(
            f"{directory} does not fit the model being trained: {len(wrong)} of {len(division.own)} tensors are "
            f"missing or have another shape (first: {wrong[0]}). Resume with the config that wrote it."
        )
    for name in division.own:
        division.put(name, weights[name]())
