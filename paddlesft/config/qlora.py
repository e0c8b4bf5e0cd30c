"""Keys about the quantized base of an adapter: what they mean together, and what other tools call them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from paddlesft.config.fields import default_of
from paddlesft.config.translation import OldKey, Translation, Untranslatable

if TYPE_CHECKING:
    from paddlesft.config.resolve import RunConfig

Finding = tuple[tuple[str, ...], str]  # as in rules.py

KEY = "weight_quantize_algo"
ALLOWED = "nf4, fp4, weight_only_int8, weight_only_int4"
_SPELLINGS = {
    "nf4": "nf4", "fp4": "fp4", "weight_only_int8": "weight_only_int8", "weight_only_int4": "weight_only_int4",
    "wint8": "weight_only_int8", "wint4": "weight_only_int4", "int8": "weight_only_int8", "int4": "weight_only_int4",
}  # fmt: skip
_ROUNDED = ("llm.int8", "llm_int8", "llm.int8()", "a8w8", "w8a8", "a8w8linear", "a8w4linear", "fp8linear")
_TABLES = ("nf4", "fp4")
_OF_TABLES, _OF_DOUBLE = ("weight_blocksize",), ("weight_double_quant_block_size",)
_ALL = (*_OF_TABLES, "weight_double_quant", *_OF_DOUBLE)


def qlora_problems(run: RunConfig) -> Iterator[Finding]:
    """Yield every contradiction between keys about the quantized base."""
    model, algorithm = run.model, run.model.weight_quantize_algo
    if not algorithm:
        return
    if run.quantization.asked:
        asked = " and ".join(run.quantization.asked)
        yield (
            (KEY, *run.quantization.asked),
            f"{KEY} quantizes the base while it is loaded, {asked} the float model, which is needed for it. Remove "
            f"{KEY}; quant_type says what comes out.",
        )
    elif run.training.do_train and not (model.lora or model.prefix_tuning):
        yield (
            (KEY, "lora", "prefix_tuning"),
            f"{KEY}: found {algorithm}, but lora and prefix_tuning are false: quantized weights cannot be trained. Set "
            f"lora: true (QLoRA) or prefix_tuning: true, or remove {KEY} to train all weights.",
        )


def idle_qlora_keys(run: RunConfig) -> Iterator[str]:
    """Yield a notice for each key that was set but does not count in this run."""
    model, algorithm = run.model, run.model.weight_quantize_algo
    if not algorithm:
        idle = _idle_beside_quantization(run) if run.quantization.asked else dict.fromkeys(
            _ALL, f"while {KEY} is not set"
        )  # fmt: skip
    else:
        idle = {} if algorithm in _TABLES else dict.fromkeys(
            _OF_TABLES, f"with {KEY} {algorithm}, which has one scale for each output"
        )  # fmt: skip
        if not model.weight_double_quant:
            idle |= dict.fromkeys(_OF_DOUBLE, "while weight_double_quant is off")
    for key, why in idle.items():
        if run.was_set(key) and getattr(model, key) != default_of(run.find(key)[1]):
            yield f"{run.origins[key].place}: {key} has no effect {why}."


def _idle_beside_quantization(run: RunConfig) -> dict[str, str]:
    """A quantization shares ``weight_double_quant`` and has its own key for the size of groups."""
    asked, kind = run.quantization.asked[0], run.quantization.quant_type
    idle = {
        "weight_blocksize": f"with {asked}; there group_size says how many weights share a scale",
        "weight_double_quant_block_size": f"with {asked}, which takes 256",
    }
    if kind not in _TABLES:
        idle["weight_double_quant"] = f"with quant_type {kind}, whose scales stay floats; it is for nf4 and fp4"
    return idle


def _algorithm(value: Any) -> Translation:
    if value is None or value == "":
        return Translation({KEY: None})
    word = value.lower().replace("-", "_") if isinstance(value, str) else value
    if word in _ROUNDED:
        raise Untranslatable(
            f"it rounds activations, which lets no gradient pass. Adapters are trained over weight-only formats: "
            f"{ALLOWED}."
        )
    if not isinstance(value, str) or word not in _SPELLINGS:
        return Translation({KEY: value})  # refused with what is allowed, like any other wrong value
    ours = _SPELLINGS[word]
    return Translation({KEY: ours}, "" if ours == value else f'"{value}" is read as "{ours}".')


def _bits(value: Any) -> Translation:
    """LLaMA-Factory's, which has bitsandbytes quantize the base."""
    if value is None:
        return Translation({}, "null asks for nothing.")
    if type(value) is int and value == 4:
        return Translation(
            {KEY: "nf4"},
            f"read as {KEY}: nf4. Scales are stored in 8 bits too with weight_double_quant: true, there the default.",
        )
    if type(value) is int and value == 8:
        return Translation(
            {KEY: "weight_only_int8"},
            f"read as {KEY}: weight_only_int8; activations are not rounded, as LLM.int8() of bitsandbytes does.",
        )
    raise Untranslatable(f"allowed: 4 ({KEY}: nf4) or 8 (weight_only_int8).")


def _method(value: Any) -> Translation:
    if value in (None, "bnb", "bitsandbytes"):
        return Translation({}, f"has no effect here: {KEY} says what the base is quantized to.")
    raise Untranslatable(f"allowed: bnb, or leave the key out; {KEY} takes {ALLOWED}.")


def _table(value: Any) -> Translation:
    if value == "nf4":
        return Translation({}, "has no effect here: quantization_bit: 4 is nf4.")
    raise Untranslatable(f"allowed: nf4. For fp4 write {KEY}: fp4 in the place of quantization_bit.")


def _merge_with_dequantized(value: Any) -> Translation:
    if type(value) is bool or value is None:
        return Translation({}, "has no effect here: paddlesft merge-lora asks which base an adapter is merged into.")
    raise Untranslatable("allowed: true or false.")


QLORA_OLD_KEYS: dict[str, OldKey] = {
    KEY: OldKey(_algorithm, KEY, (KEY,), "older spellings of values are translated"),
    "quantization_bit": OldKey(_bits, KEY, (KEY,), f"4: {KEY}: nf4; 8: weight_only_int8"),
    "quantization_method": OldKey(_method, touches=(KEY,), summary="bnb: no effect; others are refused"),
    "quantization_type": OldKey(_table, touches=(KEY,), summary="nf4: no effect; fp4 is a value of " + KEY),
    "merge_with_qdq_base_model": OldKey(_merge_with_dequantized, summary="no effect: paddlesft merge-lora asks"),
}
