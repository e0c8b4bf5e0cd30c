"""A quantized model directory -> the float model that it stands for, proved to compute the same before it appears.

What rounding has lost stays lost; the new directory is for what only floats can be used for: export, full training,
division among cards.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from paddlesft.checkpoints.verify import Comparison, compare_logits, logits_of, prompt_ids, release
from paddlesft.directories import new_directory, write_json
from paddlesft.errors import CheckpointError, ModelDirectoryError
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_config
from paddlesft.models.load import load_model, state_to_store
from paddlesft.models.provenance import fingerprint, read_provenance, write_provenance
from paddlesft.models.quantized.dequantized import dequantized_weights
from paddlesft.models.quantized.directory import KEY
from paddlesft.models.quantized.origin import formats_of, records_in
from paddlesft.models.resolve import resolve_model
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.models.weights import DTYPE, PADDLE_LAYOUT, NewTensor, write_weights


@dataclass(frozen=True)
class DequantizeReport:
    """What was written.

    Attributes:
        output: the new directory.
        source: the quantized one.
        formats: what its weights were stored in, in words.
        layers: how many were quantized.
        dtype: type of the weights that were.
        comparison: the new model against the quantized one.
        seconds: wall-clock time.
    """

    output: Path
    source: Path
    formats: str
    layers: int
    dtype: str
    comparison: Comparison
    seconds: float


def dequantize(
    source: str | Path, output: str | Path, dtype: str = "float32", overwrite: bool = False
) -> DequantizeReport:
    """Write the float weights that a quantized directory stands for, complete and proved, or not at all.

    Args:
        source: a directory that ``paddlesft quantize`` made; it is only read.
        output: the directory to create.
        dtype: float32, which holds all of codes times scales, bfloat16 or float16.
        overwrite: replace ``output`` when it has content.

    Raises:
        ModelDirectoryError: ``source`` is no quantized directory, or rounds activations too.
        CheckpointError: the new model computes something else, or ``output`` lies in ``source``.
        UserError: ``output`` has content and ``overwrite`` is false.
    """
    began = time.perf_counter()
    source = resolve_model(source)
    records = records_in(source)
    if not records:
        raise ModelDirectoryError(f"{source} holds float weights already: there is nothing to dequantize.")
    if Path(output).resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{output} lies in {source}, which is never changed. Choose another directory.")
    model = load_model(source, dtype="float32")
    weights = dequantized_weights(model, state_to_store(model), source)
    code = DTYPE[dtype]
    floats = set(DTYPE.values())
    weights = {
        name: NewTensor(code if tensor.dtype in floats else tensor.dtype, tensor.shape, tensor.make)
        for name, tensor in weights.items()
    }
    with new_directory(output, overwrite=overwrite) as scratch:
        config = {key: value for key, value in read_config(source).items() if key not in (KEY, "torch_dtype")}
        write_json(scratch / "config.json", config | {"dtype": dtype})
        if (source / "generation_config.json").is_file():
            shutil.copyfile(source / "generation_config.json", scratch / "generation_config.json")
        copy_tokenizer(source, scratch)
        write_weights(scratch, weights, PADDLE_LAYOUT)
        has_tokenizer = any((scratch / name).is_file() for name in TOKENIZER_FILES)
        prompts = prompt_ids(load_tokenizer(scratch) if has_tokenizer else None, model.config.vocab_size)
        wanted = logits_of(model, prompts)
        del model, weights
        release()
        comparison = compare_logits(wanted, logits_of(load_model(scratch, dtype="float32"), prompts), dtype)
        release()
        if not comparison.passed:
            raise CheckpointError(
                f"The float model does not compute what {source} does: {comparison.sentence()}. {output} was not "
                "written."
            )
        told = read_provenance(source)
        kept = {key: told[key] for key in ("base", "chat_template", "system_prompt", "method", "data") if key in told}
        write_provenance(
            scratch,
            kind="model",
            source={"name": str(source), "format": "dequantized", "fingerprint": fingerprint(source)},
            dtype=dtype,
            fingerprint=fingerprint(scratch),
            stood_in=formats_of(records),
            **kept,
        )
    return DequantizeReport(
        Path(output), source, formats_of(records), len(records), dtype, comparison, time.perf_counter() - began
    )
