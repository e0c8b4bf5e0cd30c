"""LoRA adapter + base -> a plain model directory, proved equal to the adapter model before it appears.

W' = W + scaling * A @ B (Hu et al. 2021, https://arxiv.org/abs/2106.09685), summed in float32 and rounded once.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.checkpoints.adapter import Adapter, read_adapter
from paddlesft.checkpoints.merge_base import MergeBase, Precision, choose_base
from paddlesft.checkpoints.verify import Comparison, compare_logits, logits_of, prompt_ids, release
from paddlesft.directories import new_directory, write_json
from paddlesft.errors import CheckpointError
from paddlesft.models.directory import TOKENIZER_FILES, copy_tokenizer, read_config
from paddlesft.models.load import load_model, quiet_paddlenlp
from paddlesft.models.provenance import fingerprint, read_provenance, write_provenance
from paddlesft.models.quantized.directory import KEY as QUANTIZATION
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.models.weights import DTYPE, PADDLE_LAYOUT, NewTensor, write_weights
from paddlesft.tuning.lora import load_lora

logger = logging.getLogger("paddlesft")

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the new model directory.
        base: the base's directory.
        base_check: "matches", "unknown" (the adapter names no fingerprint) or "forced" (they differ).
        dtype: type of the merged weights.
        updated: number of layers with a low-rank update.
        replaced: number of weights taken from the adapter as a whole.
        scaling: factor of A @ B.
        precision: "dequantized" or "full" where the adapter was trained over quantized weights, else None.
        formats: of those weights, in words.
        comparison: merged model against adapter model, on the base that was chosen.
        from_training: merged model against what training computed with, where that was another base.
        effect: largest logit difference between base and adapter model; 0 means that the adapter does nothing.
        notices: what the user should know.
        seconds: wall-clock time.
    """

    output: Path
    base: Path
    base_check: str
    dtype: str
    updated: int
    replaced: int
    scaling: float
    precision: Precision | None
    formats: str
    comparison: Comparison
    from_training: Comparison | None
    effect: float
    notices: list[str]
    seconds: float


def merge_lora(
    base: str | Path | None,
    lora_path: str | Path,
    output: str | Path,
    dtype: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    base_precision: Precision | None = None,
) -> MergeReport:
    """Merge a LoRA adapter into its base model, as a new directory that is complete and proved, or not at all.

    One weight at a time is in memory while merging; the proof holds one float32 model at a time.

    Args:
        base: directory, hub name or ``embedded:...``; None takes the base that the adapter names.
        lora_path: a LoRA adapter directory.
        output: the directory to create; neither input is changed.
        dtype: float32, bfloat16 or float16; when None the base's own, float32 for dequantized weights.
        overwrite: replace ``output`` when it has content.
        force: merge although the base's fingerprint is not the one that the adapter was trained on; this is recorded.
        base_precision: needed where the adapter was trained over quantized weights, see ``merge_base``.

    Returns:
        The report with the proof.

    Raises:
        ModelDirectoryError: an input is missing or incomplete.
        CheckpointError: the base is a wrong one, ``base_precision`` is missing, the adapter is of a kind that cannot be
            merged, or the merged model does not compute what the adapter model does.
        UserError: ``output`` has content and ``overwrite`` is false.
    """
    began = time.perf_counter()
    adapter = read_adapter(lora_path)
    notices: list[str] = []
    chosen = choose_base(adapter, base, base_precision, force, notices)
    base_path = chosen.directory
    for source in (base_path, *(chosen.trained_on or ())[:1]):
        _refuse_inside(Path(output), source, adapter.path)
    config = read_config(base_path)
    weights = chosen.weights()
    if config.get("tie_word_embeddings"):
        weights.pop(HEAD, None)  # the embedding a second time
    check_shapes(adapter, weights, base_path)
    if chosen.precision == "dequantized":
        dtype = dtype or "float32"  # holds all of codes times scales
    code = DTYPE[dtype] if dtype else None
    merged = merged_tensors(adapter, weights, code)
    used = dtype or stored_dtype(config, weights)
    with new_directory(output, overwrite=overwrite) as scratch:
        content = {key: value for key, value in config.items() if key not in ("torch_dtype", QUANTIZATION)}
        content |= {"dtype": used}
        write_json(scratch / "config.json", content)
        if (base_path / "generation_config.json").is_file():
            shutil.copyfile(base_path / "generation_config.json", scratch / "generation_config.json")
        _copy_tokenizers(base_path, adapter.path, scratch)
        write_weights(scratch, merged, PADDLE_LAYOUT)
        del weights, merged
        comparison, from_training, effect = prove(chosen, adapter.path, scratch, used)
        if not comparison.passed:
            raise CheckpointError(
                f"The merged model does not compute what the adapter model does: {comparison.sentence()}. "
                f"{output} was not written."
            )
        if effect == 0:
            notices.append("The adapter does not change the base model at all: was it trained?")
        elif effect < comparison.max_abs_diff:
            notices.append(
                f"Rounding to {used} moves the logits further ({comparison.max_abs_diff:.2e}) than the adapter does "
                f"({effect:.2e}). Use --dtype float32 to keep what was learned."
            )
        write_provenance(scratch, **_facts(adapter, chosen, used, comparison, from_training, scratch))
    return MergeReport(
        output=Path(output),
        base=base_path,
        base_check=chosen.check,
        dtype=used,
        updated=len(adapter.updated),
        replaced=len(adapter.replaced),
        scaling=adapter.scaling,
        precision=chosen.precision,
        formats=chosen.formats,
        comparison=comparison,
        from_training=from_training,
        effect=effect,
        notices=notices,
        seconds=time.perf_counter() - began,
    )


def check_shapes(adapter: Adapter, weights: dict[str, NewTensor], base: Path) -> None:
    """Refuse an adapter with weights that the base has no place for.

    Raises:
        CheckpointError: a name is unknown or a shape differs; the first three are named.
    """
    wrong = []
    wanted = {f"{layer}.weight": adapter.delta_shape(layer) for layer in adapter.updated}
    wanted |= {name: adapter.tensors[name].shape for name in adapter.replaced}
    for name, shape in wanted.items():
        if name not in weights:
            wrong.append(f"{name} is not in the base")
        elif weights[name].shape != tuple(shape):
            wrong.append(f"{name} is {list(weights[name].shape)} in the base, {list(shape)} in the adapter")
    if wrong:
        raise CheckpointError(
            f"The adapter {adapter.path} does not fit the base {base}: {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Give the base that it was trained on."
        )


def merged_tensors(adapter: Adapter, weights: dict[str, NewTensor], code: str | None) -> dict[str, NewTensor]:
    """Describe the merged weights; each is computed when it is written.

    Args:
        adapter: the adapter.
        weights: the base's weights.
        code: safetensors type of the result; None keeps each weight's own.
    """
    updated = {f"{layer}.weight": layer for layer in adapter.updated}
    out = {}
    for name, tensor in weights.items():
        dtype = code if code and tensor.dtype in DTYPE.values() else tensor.dtype
        source = adapter.tensors.get(name, tensor)  # trained as a whole, or the base's

        def make(source: NewTensor = source, layer: str | None = updated.get(name)) -> np.ndarray:
            array = source.make()
            return array if layer is None else array.astype(np.float32) + adapter.delta(layer)

        out[name] = NewTensor(dtype, tensor.shape, make)
    return out


def stored_dtype(config: dict[str, Any], weights: dict[str, NewTensor]) -> str:
    """Return the type that most of a model's numbers are stored in; config.json may say another one."""
    sizes: dict[str, int] = {}
    for tensor in weights.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    names = {code: name for name, code in DTYPE.items()}
    return names.get(max(sizes, key=lambda code: sizes[code]), str(config.get("dtype", "float32")))


def prove(base: MergeBase, lora_path: Path, merged: Path, dtype: str) -> tuple[Comparison, Comparison | None, float]:
    """Compute logits of base, adapter model and merged model, the last read back from disk, all in float32.

    Args:
        base: the base of the merge.
        lora_path: the adapter's directory.
        merged: the merged model's.
        dtype: the type that the merged weights are stored in.

    Returns:
        Merged against adapter model on this base; against the adapter model on the base of its training, where that is
        another one; and the largest logit difference between base and adapter model.
    """
    has_tokenizer = any((merged / name).is_file() for name in TOKENIZER_FILES)
    model = load_model(base.directory, dtype="float32", quantize=base.how)
    prompts = prompt_ids(load_tokenizer(merged) if has_tokenizer else None, model.config.vocab_size)
    plain = logits_of(model, prompts)
    with quiet_paddlenlp():
        model = load_lora(model, lora_path)
    with_adapter = logits_of(model, prompts)
    effect = max(float(np.abs(x - y).max()) for x, y in zip(plain, with_adapter))
    del model, plain
    release()
    reloaded = logits_of(load_model(merged, dtype="float32"), prompts)
    release()
    from_training = None
    if base.trained_on is not None:
        directory, how = base.trained_on
        model = load_model(directory, dtype="float32", quantize=how)
        with quiet_paddlenlp():
            model = load_lora(model, lora_path)
        from_training = compare_logits(logits_of(model, prompts), reloaded, dtype)
        del model
        release()
    return compare_logits(with_adapter, reloaded, dtype), from_training, effect


def _copy_tokenizers(base: Path, adapter: Path, directory: Path) -> None:
    """Take the tokenizer that the adapter was trained with; the base's when the adapter has none."""
    own = (adapter / "tokenizer_config.json").is_file()
    copy_tokenizer(adapter if own else base, directory)


def _refuse_inside(output: Path, base: Path, adapter: Path) -> None:
    for name, source in (("base", base), ("adapter", adapter)):
        if output.resolve().is_relative_to(source.resolve()):
            same = output.resolve() == source.resolve()
            where = f"is the {name} itself" if same else f"lies in the directory of the {name}"
            raise CheckpointError(
                f"merge_model_path: {output} {where}. Inputs are never changed: choose another directory."
            )


def _facts(
    adapter: Adapter,
    base: MergeBase,
    dtype: str,
    comparison: Comparison,
    from_training: Comparison | None,
    scratch: Path,
) -> dict[str, Any]:
    told = read_provenance(base.directory)
    if any((adapter.path / f"chat_template{ending}").is_file() for ending in (".json", ".jinja")):
        told.pop("chat_template", None)  # the adapter's own file has been copied instead
    told |= adapter.provenance
    # Who asks the merged model has to write prompts as the training did.
    kept = {key: told[key] for key in ("chat_template", "system_prompt") if key in told}
    kept |= {key: adapter.provenance[key] for key in ("method", "data", "seed") if key in adapter.provenance}
    return {
        "kind": "model",
        "source": {"name": str(adapter.path.resolve()), "format": "merged_lora"},
        "base": {
            "name": str(base.directory) if base.trained_on else adapter.base.get("name", str(base.directory)),
            "path": str(base.directory.resolve()),
            "fingerprint": base.fingerprint,
            "check": base.check,
            **({"precision": base.precision, "trained_in": base.formats} if base.precision else {}),
        },
        "adapter_fingerprint": fingerprint(adapter.path),
        "dtype": dtype,
        "fingerprint": fingerprint(scratch),
        "merge": {
            "scaling": adapter.scaling,
            "rank": adapter.config["r"],
            "max_abs_logit_diff": comparison.max_abs_diff,
            "bound": comparison.bound,
            **({"max_abs_diff_from_training": from_training.max_abs_diff} if from_training else {}),
        },
        **kept,
    }
