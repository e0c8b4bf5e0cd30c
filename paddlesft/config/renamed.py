"""Keys that users bring to a training run from PaddleNLP (2.6 to 3.0) and PaddleFormers (1.2).

Plain renames stand with the key itself (``aliases`` in its declaration). Here stand the old keys whose values change as
well, spellings of values that are no longer ours, and keys of features that are not built yet. Keys that change nothing
stand in ``ignored.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddlesft.config.ignored import WITHOUT_EFFECT
from paddlesft.config.qlora import QLORA_OLD_KEYS
from paddlesft.config.translation import (
    OldKey,
    Translation,
    Untranslatable,
    refused,
    renamed,
    respelled,
    without_effect,
)

_STAGES = ("SFT", "PT", "DPO", "VL-SFT", "VL-DPO", "VL-PT")
_QUANT_TYPES = {
    "A8W8": "a8w8",
    "W8A8": "a8w8",
    "A8W8C8": "a8w8c8",
    "A8W8_FP8": "a8w8_fp8",
    "LLM.INT8": "llm.int8",
    "LLM.INT8()": "llm.int8",
    "LLM_INT8": "llm.int8",
    "WINT8": "weight_only_int8",
    "WINT4": "weight_only_int4",
    "W8": "weight_only_int8",
    "W4": "weight_only_int4",
    "INT8": "weight_only_int8",
    "INT4": "weight_only_int4",
    "WEIGHT_ONLY_INT8": "weight_only_int8",
    "WEIGHT_ONLY_INT4": "weight_only_int4",
    "NF4": "nf4",
    "FP4": "fp4",
}
_MIX = {"undersampling": "interleave_under", "oversampling": "interleave_over", "interleave": "interleave_under"}
_TRUNCATION = {
    "delete": "drop",
    "left": "truncate_left_prompt",
    "truncate_left": "truncate_left_prompt",
    "right": "truncate_right",
    "raise": "error",
}
_ATTENTION = {
    "flashmask": True,
    "flash_attention": True,
    "flash_attention_2": True,
    "flash_attn": True,
    "sdpa": False,
    "eager": False,
}
_COMPUTE = {
    "fp32": {"bf16": False, "fp16": False},
    "float32": {"bf16": False, "fp16": False},
    "bf16": {"bf16": True, "fp16": False},
    "bfloat16": {"bf16": True, "fp16": False},
    "fp16": {"bf16": False, "fp16": True},
    "float16": {"bf16": False, "fp16": True},
    "nf4": {"weight_quantize_algo": "nf4", "bf16": True, "fp16": False},
    "wint8": {"weight_quantize_algo": "weight_only_int8", "bf16": True, "fp16": False},
    "wint4": {"weight_quantize_algo": "weight_only_int4", "bf16": True, "fp16": False},
}
_METHODS = {
    "full": {"lora": False, "prefix_tuning": False},
    "lora": {"lora": True, "prefix_tuning": False},
    "prefix": {"lora": False, "prefix_tuning": True},
    "pt": {"lora": False, "prefix_tuning": True},
}


def _lookup(table: dict[str, Any], shown: str) -> Callable[[Any], Any]:
    """Translate by a table whose keys are compared without regard to case; other values pass and are checked later."""
    lowered = {key.lower(): value for key, value in table.items()}

    def convert(value: Any) -> Any:
        return lowered.get(value.lower(), value) if isinstance(value, str) else value

    convert.__doc__ = shown
    return convert


def _several(table: dict[str, dict[str, Any]], unbuilt: dict[str, str] | None = None) -> OldKey:
    """An old key whose value decides about several of ours."""
    keys = tuple(dict.fromkeys(key for values in table.values() for key in values))

    def translate(value: Any) -> Translation:
        word = value.lower() if isinstance(value, str) else value
        if word in (unbuilt or {}):
            raise Untranslatable(
                f"{(unbuilt or {})[word]} is not built yet in this version. Allowed: {', '.join(table)}."
            )
        if not isinstance(value, str) or word not in table:
            raise Untranslatable(f"allowed: {', '.join(table)}.")
        values = table[word]
        return Translation(values, "read as " + ", ".join(f"{k}: {str(v).lower()}" for k, v in values.items()) + ".")

    return OldKey(translate, touches=keys, summary="decides about " + ", ".join(keys))


def _stage(value: Any) -> Translation:
    if isinstance(value, str) and value.upper() == "SFT":
        return Translation({}, "is what this verb does; the key is not needed.")
    if isinstance(value, str) and value.upper() in _STAGES:
        raise Untranslatable(f"the stage {value.upper()} is not built yet in this version. Allowed: SFT.")
    raise Untranslatable("allowed: SFT.")


def _paths(value: Any) -> Any:
    """``a.jsonl,b.jsonl`` names two files, unless a file has that very name."""
    if isinstance(value, str) and "," in value and not Path(value).exists():
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, str) else value


def _shares(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise Untranslatable('allowed: numbers between commas such as "0.8,0.2", or a list.') from None


def _quiet_list(key: str, convert: Callable[[Any], Any], summary: str) -> OldKey:
    """Our own list key that may be written as one text with commas; nobody needs to hear about it."""
    return OldKey(lambda value: Translation({key: convert(value)}), key, (key,), summary)


def _dataset_type(value: Any) -> Any:
    """One format for each path, as in ``erniekit,erniekit``; formats that differ are detected file by file."""
    if isinstance(value, str) and "," in value:
        kinds = {part.strip() for part in value.split(",")}
        return kinds.pop() if len(kinds) == 1 else "auto"
    return value


def _quant_type(value: Any) -> Any:
    return _lookup(_QUANT_TYPES, "")(value.replace("-", "_")) if isinstance(value, str) else value


def _lora_alpha(value: Any) -> Any:
    return None if type(value) in (int, float) and value == -1 else value


def _smooth_k_piece(value: Any) -> Any:
    return 3 if value is True else value


def _report_to(value: Any) -> Any:
    return [] if value in ("none", ["none"]) else value


def _granularity(value: Any) -> Translation:
    if value is None:
        return Translation({"recompute": False}, "null is read as recompute: false.")
    return Translation(
        {"recompute_granularity": "core_attn"} if value == "selective" else {"recompute_granularity": value},
        "selective is read as core_attn." if value == "selective" else "",
    )


def _recompute_method(value: Any) -> Translation:
    if value is None:
        return Translation({}, "has no effect here: null asks for nothing.")
    if value in ("uniform", "block"):
        return Translation(
            {"recompute": True},
            "read as recompute: true; name layers that keep their activations in no_recompute_layers.",
        )
    raise Untranslatable("allowed: uniform, block or null.")


def _shuffle(value: Any) -> Translation:
    if value is True:
        return Translation({}, "has no effect here: training rows are always shuffled, by seed.")
    if value is False:
        raise Untranslatable("training rows are always shuffled, by seed. Allowed: true, or leave the key out.")
    raise Untranslatable("allowed: true.")


def _use_template(value: Any) -> Translation:
    if value is True:
        return Translation({}, "has no effect here: a template is always used; chat_template chooses it.")
    if value is False:
        return Translation({"chat_template": "plain"}, 'read as chat_template: "plain" (prompt and reply as they are).')
    raise Untranslatable("allowed: true or false.")


def _template(value: Any) -> Translation:
    if value is None or isinstance(value, str):
        return Translation(
            {}, "has no effect here: the template that comes with the tokenizer is used; chat_template chooses another."
        )
    raise Untranslatable("allowed: text.")


def _global_batch_size(value: Any) -> Translation:
    if value in (-1, None):
        return Translation(
            {}, "has no effect here: it follows from per_device_train_batch_size and gradient_accumulation_steps."
        )
    raise Untranslatable(
        "the batch of one optimiser step is per_device_train_batch_size * gradient_accumulation_steps * processes. "
        "Set those and leave this key out."
    )


def _dataset(value: Any) -> Translation:
    raise Untranslatable(
        "names out of LLaMA-Factory's dataset_info.json are not looked up here. Give the file itself: "
        "dataset_name_or_path; its format is recognised."
    )


def _deepspeed(value: Any) -> Translation:
    if value in (None, ""):
        return Translation({}, "asks for nothing here.")
    named = re.search(r"(?:z|zero|stage)[-_]?([123])", str(value).lower())  # LLaMA-Factory's: ds_z3_offload_config.json
    stage = f"sharding: stage{named[1]}" if named else "sharding: stage1, stage2 or stage3"
    offload = " offload" if named and "offload" in str(value).lower() else ""
    raise Untranslatable(f"DeepSpeed is not used here; what its ZeRO does is {stage}{offload}. Write that instead.")


_NOT_BUILT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "use_fp8": ("training in fp8", (False, None)),
    "use_fp8_mlp": ("training in fp8", (False, None)),
    "use_fp8_fuse_node": ("training in fp8", (False, None)),
    "rslora_plus": ("rsLoRA+", (False, None)),
    "freeze_config": ("freezing parts of the model", ("", None)),
    "make_offline_data": ("writing prepared data to disk", (False, None)),
    "new_special_tokens_path": ("adding special tokens", (None, "")),
    "custom_register_path": ("loading templates from Python files", (None, "")),
    "use_global_causal_attn": ("attention across packed conversations", (False, None)),
    "enable_mtp_magic_send": ("multi-token prediction", (False, None)),
    "num_nextn_predict_layers": ("multi-token prediction", (0, None)),
    "use_recompute_mtp": ("multi-token prediction", (False, None)),
    "mtp_attention_flexible": ("multi-token prediction", (False, None)),
    "moe_gate_lr_ratio": ("a learning rate of its own for experts' routers", (None,)),
    "token_balance_loss": ("token-balanced loss of vision-language training", (False, None)),
}

TRAINING_OLD_KEYS: dict[str, OldKey] = {
    # Keys with another name and other values
    "stage": OldKey(_stage, summary="SFT is what `paddlesft train` does; other stages are not built yet"),
    "fine_tuning": _several(_METHODS),
    "compute_type": _several(
        _COMPUTE, {"fp8": "training in fp8", "wint4/8": "a base with 4 bits in experts and 8 in other layers"}
    ),
    "_attn_implementation": renamed("use_flash_attention", _lookup(_ATTENTION, "attention")),
    "attn_impl": renamed("use_flash_attention", _lookup(_ATTENTION, "attention")),
    "attn_implementation": renamed("use_flash_attention", _lookup(_ATTENTION, "attention")),
    "truncation_strategy": renamed("truncation", _lookup(_TRUNCATION, "truncation")),
    "use_template": OldKey(_use_template, touches=("chat_template",), summary="false: chat_template: plain"),
    "template": OldKey(_template, summary="no effect: the template that comes with the tokenizer is used"),
    "random_shuffle": OldKey(_shuffle, summary="training rows are always shuffled"),
    "global_batch_size": OldKey(_global_batch_size, summary="follows from the batch keys"),
    "recompute_method": OldKey(_recompute_method, touches=("recompute",), summary="uniform or block: recompute: true"),
    # LLaMA-Factory's
    "finetuning_type": _several(_METHODS),
    "lora_target": OldKey(
        lambda value: Translation(
            {"lora_target_modules": _paths(value) if value != "all" else value}, "the name here is lora_target_modules."
        ),
        "lora_target_modules",
        ("lora_target_modules",),
        "renamed to lora_target_modules",
    ),
    "deepspeed": OldKey(
        _deepspeed, touches=("sharding",), summary="ZeRO 1, 2, 3 are `sharding`: stage1, stage2, stage3"
    ),
    "flash_attn": renamed(
        "use_flash_attention", _lookup({"fa2": True, "auto": False, "disabled": False, **_ATTENTION}, "attention")
    ),
    "dataset": OldKey(
        _dataset,
        touches=("dataset_name_or_path", "train_dataset_path"),
        summary="names of dataset_info.json are not looked up; dataset_name_or_path takes the file",
    ),
    # Our keys, older spellings of values
    "recompute_granularity": OldKey(
        _granularity, "recompute_granularity", ("recompute", "recompute_granularity"), "selective is read as core_attn"
    ),
    "quant_type": respelled("quant_type", _quant_type),
    "smooth_k_piece": respelled(
        "smooth_k_piece", _smooth_k_piece, "the samples of PaddleNLP 2.6 hold true for this number; 3 is its default"
    ),
    "lora_alpha": respelled("lora_alpha", _lora_alpha, "that is, 2 * lora_rank"),
    "mix_strategy": respelled("mix_strategy", _lookup(_MIX, "mix_strategy")),
    "report_to": respelled("report_to", _report_to),
    "train_dataset_path": _quiet_list("train_dataset_path", _paths, "text with commas names several"),
    "eval_dataset_path": _quiet_list("eval_dataset_path", _paths, "text with commas names several"),
    "test_dataset_path": _quiet_list("test_dataset_path", _paths, "text with commas names several"),
    "train_dataset_prob": _quiet_list("train_dataset_prob", _shares, "text with commas names several"),
    "train_dataset_type": respelled("train_dataset_type", _dataset_type, "one format is declared for all files"),
    "eval_dataset_type": respelled("eval_dataset_type", _dataset_type, "one format is declared for all files"),
    **QLORA_OLD_KEYS,
    # What is not built yet
    **{key: refused(what, "Remove the key.", neutral) for key, (what, neutral) in _NOT_BUILT.items()},
    **{key: without_effect(why) for key, why in WITHOUT_EFFECT.items()},
}
