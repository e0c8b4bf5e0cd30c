"""What becomes of keys and values of other tools: the translation, its notice, and what is refused."""

# ruff: noqa: E501 (a row of the tables is one case)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddlesft.config import RUN_GROUPS
from paddlesft.config.ignored import WITHOUT_EFFECT
from paddlesft.config.loader import read_arguments
from paddlesft.config.renamed import TRAINING_OLD_KEYS


def read(tmp_path: Path, **content: Any):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = read_arguments(RUN_GROUPS, path, (), TRAINING_OLD_KEYS)
    flat = {key: value for group in loaded.instances.values() for key, value in vars(group).items()}
    shorten = [text.replace(f"{path}:1: ", "") for text in (loaded.notices or loaded.problems)]
    return flat, shorten, loaded


TRANSLATED = [
    ("stage", "SFT", {}, "stage: is what this verb does; the key is not needed."),
    ("stage", "sft", {}, "stage: is what this verb does; the key is not needed."),
    ("fine_tuning", "LoRA", {"lora": True, "prefix_tuning": False}, "fine_tuning: read as lora: true, prefix_tuning: false."),
    ("fine_tuning", "full", {"lora": False, "prefix_tuning": False}, "fine_tuning: read as lora: false, prefix_tuning: false."),
    ("compute_type", "bf16", {"bf16": True, "fp16": False}, "compute_type: read as bf16: true, fp16: false."),
    ("compute_type", "nf4", {"weight_quantize_algo": "nf4", "bf16": True}, "compute_type: read as weight_quantize_algo: nf4, bf16: true, fp16: false."),
    ("compute_type", "wint8", {"weight_quantize_algo": "weight_only_int8"}, "compute_type: read as weight_quantize_algo: weight_only_int8, bf16: true, fp16: false."),
    ("weight_quantize_algo", "WINT8", {"weight_quantize_algo": "weight_only_int8"}, 'weight_quantize_algo: "WINT8" is read as "weight_only_int8".'),
    ("weight_quantize_algo", "NF4", {"weight_quantize_algo": "nf4"}, 'weight_quantize_algo: "NF4" is read as "nf4".'),
    ("quantization_bit", 4, {"weight_quantize_algo": "nf4"}, "quantization_bit: read as weight_quantize_algo: nf4. Scales are stored in 8 bits too with weight_double_quant: true, there the default."),
    ("quantization_bit", 8, {"weight_quantize_algo": "weight_only_int8"}, "quantization_bit: read as weight_quantize_algo: weight_only_int8; activations are not rounded, as LLM.int8() of bitsandbytes does."),
    ("quantization_bit", None, {"weight_quantize_algo": None}, "quantization_bit: null asks for nothing."),
    ("quantization_method", "bnb", {}, "quantization_method: has no effect here: weight_quantize_algo says what the base is quantized to."),
    ("quantization_type", "nf4", {}, "quantization_type: has no effect here: quantization_bit: 4 is nf4."),
    ("double_quantization", True, {"weight_double_quant": True}, "double_quantization: the name here is weight_double_quant."),
    ("merge_with_qdq_base_model", True, {}, "merge_with_qdq_base_model: has no effect here: paddlesft merge-lora asks which base an adapter is merged into."),
    ("compute_type", "fp32", {"bf16": False, "fp16": False}, "compute_type: read as bf16: false, fp16: false."),
    ("_attn_implementation", "flashmask", {"use_flash_attention": True}, "_attn_implementation: read as use_flash_attention: true."),
    ("attn_impl", "sdpa", {"use_flash_attention": False}, "attn_impl: read as use_flash_attention: false."),
    ("finetuning_type", "lora", {"lora": True, "prefix_tuning": False}, "finetuning_type: read as lora: true, prefix_tuning: false."),
    ("lora_target", "all", {"lora_target_modules": "all"}, "lora_target: the name here is lora_target_modules."),
    ("lora_target", "q_proj,v_proj", {"lora_target_modules": ["q_proj", "v_proj"]}, "lora_target: the name here is lora_target_modules."),
    ("flash_attn", "fa2", {"use_flash_attention": True}, "flash_attn: read as use_flash_attention: true."),
    ("neat_packing", True, {"packing": True}, "neat_packing: the name here is packing."),
    ("val_size", 0.1, {"eval_split_ratio": 0.1}, "val_size: the name here is eval_split_ratio."),
    ("plot_loss", True, {}, "plot_loss: has no effect here: loss.png is always drawn."),
    ("ddp_timeout", 180000000, {}, "ddp_timeout: has no effect here: hang_timeout says how long a run may stand still."),
    ("deepspeed", None, {"sharding": ""}, "deepspeed: asks for nothing here."),
    ("truncation_strategy", "delete", {"truncation": "drop"}, 'truncation_strategy: read as truncation: "drop".'),
    ("truncation_strategy", "right", {"truncation": "truncate_right"}, 'truncation_strategy: read as truncation: "truncate_right".'),
    ("use_template", False, {"chat_template": "plain"}, 'use_template: read as chat_template: "plain" (prompt and reply as they are).'),
    ("use_template", True, {"chat_template": None}, "use_template: has no effect here: a template is always used; chat_template chooses it."),
    ("template", "qwen3", {"chat_template": None}, "template: has no effect here: the template that comes with the tokenizer is used; chat_template chooses another."),
    ("random_shuffle", True, {}, "random_shuffle: has no effect here: training rows are always shuffled, by seed."),
    ("global_batch_size", -1, {}, "global_batch_size: has no effect here: it follows from per_device_train_batch_size and gradient_accumulation_steps."),
    ("recompute_method", "uniform", {"recompute": True}, "recompute_method: read as recompute: true; name layers that keep their activations in no_recompute_layers."),
    ("recompute_method", None, {"recompute": False}, "recompute_method: has no effect here: null asks for nothing."),
    ("recompute_granularity", "selective", {"recompute_granularity": "core_attn"}, "recompute_granularity: selective is read as core_attn."),
    ("recompute_granularity", None, {"recompute": False}, "recompute_granularity: null is read as recompute: false."),
    ("quant_type", "A8W8", {"quant_type": "a8w8"}, 'quant_type: "A8W8" is read as "a8w8".'),
    ("quant_type", "WINT8", {"quant_type": "weight_only_int8"}, 'quant_type: "WINT8" is read as "weight_only_int8".'),
    ("quant_type", "weight-only-int8", {"quant_type": "weight_only_int8"}, 'quant_type: "weight-only-int8" is read as "weight_only_int8".'),
    ("quant_type", "int4", {"quant_type": "weight_only_int4"}, 'quant_type: "int4" is read as "weight_only_int4".'),
    ("quant_type", "NF4", {"quant_type": "nf4"}, 'quant_type: "NF4" is read as "nf4".'),
    ("quant_type", "LLM.int8()", {"quant_type": "llm.int8"}, 'quant_type: "LLM.int8()" is read as "llm.int8".'),
    ("quant_type", "wint4", {"quant_type": "weight_only_int4"}, 'quant_type: "wint4" is read as "weight_only_int4".'),
    ("lora_alpha", -1, {"lora_alpha": None}, "lora_alpha: -1 is read as null (that is, 2 * lora_rank)."),
    ("mix_strategy", "undersampling", {"mix_strategy": "interleave_under"}, 'mix_strategy: "undersampling" is read as "interleave_under".'),
    ("mix_strategy", "oversampling", {"mix_strategy": "interleave_over"}, 'mix_strategy: "oversampling" is read as "interleave_over".'),
    ("report_to", "none", {"report_to": []}, 'report_to: "none" is read as [].'),
    ("train_dataset_type", "erniekit,erniekit", {"train_dataset_type": "erniekit"}, 'train_dataset_type: "erniekit,erniekit" is read as "erniekit" (one format is declared for all files).'),
    ("train_dataset_type", "erniekit,messages", {"train_dataset_type": "auto"}, 'train_dataset_type: "erniekit,messages" is read as "auto" (one format is declared for all files).'),
    ("max_seq_len", 4096, {"max_length": 4096}, "max_seq_len: the name here is max_length."),
    ("intokens", True, {"packing": True}, "intokens: the name here is packing."),
    ("zero_padding", True, {"packing": True}, "zero_padding: the name here is packing."),
    ("greedy_intokens", True, {"greedy_packing": True}, "greedy_intokens: the name here is greedy_packing."),
    ("tensor_model_parallel_size", 1, {"tensor_parallel_degree": 1}, "tensor_model_parallel_size: the name here is tensor_parallel_degree."),
    ("sharding_degree", 1, {"sharding_parallel_degree": 1}, "sharding_degree: the name here is sharding_parallel_degree."),
    ("shift_all_linear", True, {"shift_all_linears": True}, "shift_all_linear: the name here is shift_all_linears."),
    ("max_prompt_len", 100, {"src_length": 100}, "max_prompt_len: the name here is src_length."),
    ("rslora_plus", False, {}, "rslora_plus: asks for nothing here (rsLoRA+ is not built yet in this version)."),
    ("beta", 0.1, {}, "beta: has no effect here: it belongs to preference training (DPO), which this verb does not run."),
    ("num_samples_each_epoch", 6000000, {}, "num_samples_each_epoch: has no effect here: an epoch is one pass over all rows; use max_train_samples or max_steps for less."),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "ours", "notice"), TRANSLATED, ids=[f"{k}={v}" for k, v, _, _ in TRANSLATED])
def test_translations_and_their_notices(tmp_path: Path, key: str, value: Any, ours: dict, notice: str) -> None:
    flat, notices, loaded = read(tmp_path, **{key: value})
    assert loaded.problems == []
    assert notices == [notice]
    assert {name: flat[name] for name in ours} == ours


QUIET = [
    ("train_dataset_path", "a.jsonl,b.jsonl", ["a.jsonl", "b.jsonl"]),
    ("train_dataset_path", "a.jsonl", ["a.jsonl"]),
    ("eval_dataset_path", ["a", "b"], ["a", "b"]),
    ("train_dataset_prob", "0.8,0.2", [0.8, 0.2]),
    ("train_dataset_prob", [0.5, 0.5], [0.5, 0.5]),
    ("quant_type", "weight_only_int8", "weight_only_int8"),
    ("recompute_granularity", "full_attn", "full_attn"),
    ("mix_strategy", "concat", "concat"),
    ("weight_quantize_algo", "fp4", "fp4"),
    ("lora_alpha", 32, 32.0),
    ("smooth_k_piece", 5, 5),
]


@pytest.mark.parametrize(("key", "value", "ours"), QUIET, ids=[f"{k}={v}" for k, v, _ in QUIET])
def test_our_own_spellings_need_no_notice(tmp_path: Path, key: str, value: Any, ours: Any) -> None:
    flat, notices, loaded = read(tmp_path, **{key: value})
    assert (flat[key], notices, loaded.problems) == (ours, [], [])


def test_a_file_whose_name_holds_a_comma_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a,b.jsonl"
    file.write_text("")
    flat, _, _ = read(tmp_path, train_dataset_path=str(file))
    assert flat["train_dataset_path"] == [str(file)]


REFUSED = [
    ("stage", "DPO", 'stage: found "DPO" (text); the stage DPO is not built yet in this version. Allowed: SFT.'),
    ("stage", "VL-SFT", 'stage: found "VL-SFT" (text); the stage VL-SFT is not built yet in this version. Allowed: SFT.'),
    ("stage", "SFTT", 'stage: found "SFTT" (text); allowed: SFT.'),
    ("stage", 3, "stage: found 3 (an integer); allowed: SFT."),
    ("fine_tuning", "lorra", 'fine_tuning: found "lorra" (text); allowed: full, lora, prefix, pt.'),
    ("fine_tuning", True, "fine_tuning: found true (a boolean); allowed: full, lora, prefix, pt."),
    ("compute_type", "wint4/8", 'compute_type: found "wint4/8" (text); a base with 4 bits in experts and 8 in other layers is not built yet in this version. Allowed: fp32, float32, bf16, bfloat16, fp16, float16, nf4, wint8, wint4.'),
    ("compute_type", "fp8", 'compute_type: found "fp8" (text); training in fp8 is not built yet in this version. Allowed: fp32, float32, bf16, bfloat16, fp16, float16, nf4, wint8, wint4.'),
    ("weight_quantize_algo", "llm.int8", 'weight_quantize_algo: found "llm.int8" (text); it rounds activations, which lets no gradient pass. Adapters are trained over weight-only formats: nf4, fp4, weight_only_int8, weight_only_int4.'),
    ("weight_quantize_algo", "a8w8linear", 'weight_quantize_algo: found "a8w8linear" (text); it rounds activations, which lets no gradient pass. Adapters are trained over weight-only formats: nf4, fp4, weight_only_int8, weight_only_int4.'),
    ("weight_quantize_algo", "nf5", "weight_quantize_algo: found \"nf5\" (text); allowed: one of nf4, fp4, weight_only_int8, weight_only_int4 or null. Did you mean 'nf4'?"),
    ("quantization_bit", 3, "quantization_bit: found 3 (an integer); allowed: 4 (weight_quantize_algo: nf4) or 8 (weight_only_int8)."),
    ("quantization_method", "hqq", 'quantization_method: found "hqq" (text); allowed: bnb, or leave the key out; weight_quantize_algo takes nf4, fp4, weight_only_int8, weight_only_int4.'),
    ("quantization_type", "fp4", 'quantization_type: found "fp4" (text); allowed: nf4. For fp4 write weight_quantize_algo: fp4 in the place of quantization_bit.'),
    ("_attn_implementation", "flex", '_attn_implementation: found "flex" (text); allowed: true or false.'),
    ("truncation_strategy", "middle", 'truncation_strategy: found "middle" (text); allowed: one of error, drop, truncate_left_prompt, truncate_right.'),
    ("random_shuffle", False, "random_shuffle: found false (a boolean); training rows are always shuffled, by seed. Allowed: true, or leave the key out."),
    ("random_shuffle", "x", 'random_shuffle: found "x" (text); allowed: true.'),
    ("use_template", 1, "use_template: found 1 (an integer); allowed: true or false."),
    ("template", 1, "template: found 1 (an integer); allowed: text."),
    ("recompute_method", "full", 'recompute_method: found "full" (text); allowed: uniform, block or null.'),
    ("global_batch_size", 64, "global_batch_size: found 64 (an integer); the batch of one optimiser step is per_device_train_batch_size * gradient_accumulation_steps * processes. Set those and leave this key out."),
    ("quant_type", "fp6", 'quant_type: found "fp6" (text); allowed: one of a8w8, llm.int8, weight_only_int8, weight_only_int4, nf4, fp4, a8w8c8, a8w8_fp8. Did you mean \'fp4\'?'),
    ("train_dataset_prob", "a,b", 'train_dataset_prob: found "a,b" (text); allowed: numbers between commas such as "0.8,0.2", or a list.'),
    ("use_fp8", True, "use_fp8: found true (a boolean); training in fp8 is not built yet in this version. Remove the key."),
    ("deepspeed", "examples/deepspeed/ds_z3_config.json", 'deepspeed: found "examples/deepspeed/ds_z3_config.json" (text); DeepSpeed is not used here; what its ZeRO does is sharding: stage3. Write that instead.'),
    ("deepspeed", "ds_z2_offload_config.json", 'deepspeed: found "ds_z2_offload_config.json" (text); DeepSpeed is not used here; what its ZeRO does is sharding: stage2 offload. Write that instead.'),
    ("deepspeed", "cluster.json", 'deepspeed: found "cluster.json" (text); DeepSpeed is not used here; what its ZeRO does is sharding: stage1, stage2 or stage3. Write that instead.'),
    ("freeze_config", "freeze_llm", 'freeze_config: found "freeze_llm" (text); freezing parts of the model is not built yet in this version. Remove the key.'),
    ("intokens", "yes", 'intokens: found "yes" (text); allowed: true or false.'),
    ("lora_alpha", -2, "lora_alpha: found -2 (an integer); allowed: a number greater than 0 or null."),
    ("smooth_k_piece", False, "smooth_k_piece: found false (a boolean); allowed: an integer at least 1."),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=[f"{k}={v}" for k, v, _ in REFUSED])
def test_refused_values_and_their_messages(tmp_path: Path, key: str, value: Any, message: str) -> None:
    _, _, loaded = read(tmp_path, **{key: value})
    assert [problem.partition(":1: ")[2] for problem in loaded.problems] == [message]


def test_two_old_keys_that_disagree_contradict_each_other(tmp_path: Path) -> None:
    _, _, loaded = read(tmp_path, lora=False, fine_tuning="lora")
    assert [problem.partition(":1: ")[2].replace(str(tmp_path), "") for problem in loaded.problems] == [
        'fine_tuning: "lora" (text) contradicts lora: false (a boolean) (/x.json:1); both set lora. Keep one of them.'
    ]


def test_keys_are_either_ours_or_translated_or_explained() -> None:
    ours = {key for cls in RUN_GROUPS.values() for key in cls.__dataclass_fields__}
    assert not ours & set(WITHOUT_EFFECT)
    aliases = {
        a for cls in RUN_GROUPS.values() for f in cls.__dataclass_fields__.values() for a in f.metadata["aliases"]
    }
    assert not ours & aliases
    assert not aliases & set(TRAINING_OLD_KEYS)


def test_every_explanation_is_one_clause() -> None:
    for key, why in WITHOUT_EFFECT.items():
        assert why and not why.endswith(".") and why[0].islower(), key


def test_names_of_data_sets_and_pythons_nothing_are_explained(tmp_path: Path) -> None:
    _, texts, _ = read(tmp_path, dataset="identity")
    assert texts == [
        'dataset: found "identity" (text); names out of LLaMA-Factory\'s dataset_info.json are not looked up here. '
        "Give the file itself: dataset_name_or_path; its format is recognised."
    ]
    for key, allowed in (("chat_template", "text or null"), ("lora_alpha", "a number greater than 0 or null")):
        _, texts, _ = read(tmp_path, **{key: "None"})
        assert texts == [f'{key}: found "None" (text); allowed: {allowed}. To leave the key unset write null.']
