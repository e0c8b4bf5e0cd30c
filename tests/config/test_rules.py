"""Rules across keys: each contradiction has its message, and what holds no contradiction passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import RunConfig, load_run_config
from paddlesft.errors import ConfigError

BASE = ["model_name_or_path=m", "output_dir=out", "dataset_name_or_path=data", "do_train=true"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)


def load(*overrides: str) -> RunConfig:
    return load_run_config(None, [*BASE, *overrides])


RULES = [
    (
        ["lora=true", "prefix_tuning=true"],
        "lora and prefix_tuning are both true; a run trains one of them. Set one to false (both false: the "
        "whole model is "
        "trained).",
    ),
    (
        ["lora_path=a"],
        "lora_path is set, but lora is false. Set lora: true to go on training that adapter, or remove lora_path.",
    ),
    (
        ["prefix_path=a"],
        "prefix_path is set, but prefix_tuning is false. Set prefix_tuning: true to go on training that "
        "adapter, or remove "
        "prefix_path.",
    ),
    (
        ["lora=true", "use_quick_lora=true", "lora_dropout=0.1"],
        "use_quick_lora works with lora_dropout 0 and lora_bias none only; found lora_dropout 0.1 and lora_bias none. "
        "Change those or set it to false.",
    ),
    (
        ["continue_training=false"],
        "continue_training: false asks for random weights; training from scratch is not built yet in this version. "
        "Allowed: true.",
    ),
    (["fp16=true", "bf16=true"], "fp16 and bf16 are both true; keep one. bf16 is safer where the GPU has it."),
    (
        ["fp16_full_eval=true", "bf16_full_eval=true"],
        "fp16_full_eval and bf16_full_eval are both true; keep one. bf16 is safer where the GPU has it.",
    ),
    (["no_cuda=true", "device=gpu"], "no_cuda: true contradicts device: gpu. Keep one."),
    (
        ["src_length=512", "max_length=512"],
        "src_length 512 leaves no room for a reply in max_length 512. src_length must be smaller than max_length.",
    ),
    (
        ["pad_to_max_length=true", "pad_to_multiple_of=48"],
        "max_length 2048 is no multiple of pad_to_multiple_of 48, yet pad_to_max_length is true. Change one of them.",
    ),
    (["max_new_tokens=4", "min_new_tokens=5"], "min_new_tokens 5 is more than max_new_tokens 4."),
    (
        ["eval_with_do_generation=true", "packing=true", "eval_packing=true"],
        "replies cannot be generated for packed rows. Set eval_packing: false (packing itself may stay on for "
        "training).",
    ),
    (
        ["eval_with_do_generation=true", "prediction_loss_only=true"],
        "eval_with_do_generation and prediction_loss_only are both true; keep one.",
    ),
    (
        ["do_eval=false", "evaluation_strategy=epoch"],
        "do_eval: false contradicts evaluation_strategy: epoch. Set evaluation_strategy: no, or do_eval: true.",
    ),
    (
        ["load_best_model_at_end=true", "evaluation_strategy=epoch", "save_strategy=steps"],
        "load_best_model_at_end needs a checkpoint for each evaluation; found evaluation_strategy epoch and "
        "save_strategy "
        "steps. Set both to the same: steps or epoch.",
    ),
    (
        ["load_best_model_at_end=true", "evaluation_strategy=no", "save_strategy=no"],
        "load_best_model_at_end needs evaluations and checkpoints; found evaluation_strategy no and "
        "save_strategy no. Set "
        "both to steps or epoch.",
    ),
    (
        ["load_best_model_at_end=true", "evaluation_strategy=steps", "save_steps=100", "eval_steps=30"],
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps; found 100 and 30.",
    ),
    (
        ["load_best_model_at_end=true", "evaluation_strategy=steps", "metric_for_best_model=rouge1"],
        "metric_for_best_model: found 'rouge1'; evaluation yields loss, perplexity, accuracy. Set "
        "eval_with_do_generation: true for rouge1.",
    ),
    (
        ["metric_for_best_model=eval_f1"],
        "metric_for_best_model: found 'f1'; evaluation yields loss, perplexity, accuracy.",
    ),
    (
        ["prediction_loss_only=true", "metric_for_best_model=accuracy"],
        "metric_for_best_model: found 'accuracy'; evaluation yields loss, perplexity.",
    ),
    (
        ["train_dataset_path=a.jsonl"],
        "dataset_name_or_path and train_dataset_path both name training data; keep one. (eval_dataset_path and "
        "test_dataset_path may stand beside either.)",
    ),
    (
        ["eval_dataset_path=a.jsonl", "eval_split_ratio=0.1"],
        "eval_split_ratio takes evaluation rows from the training data, eval_dataset_path names others; keep one.",
    ),
    (["eval_dataset_path=[]"], "eval_dataset_path is an empty list; name at least one file or leave the key out."),
    (
        ["dataset_name_or_path=null", "train_dataset_path=a,b", "train_dataset_prob=1.0"],
        "train_dataset_prob has 1 numbers for 2 training paths; give one for each.",
    ),
    (
        ["dataset_name_or_path=null", "train_dataset_path=a,b", "train_dataset_prob=0.5,0.6"],
        "train_dataset_prob must be positive numbers that add up to 1; found 0.5, 0.6 (sum 1.1).",
    ),
    (
        ["do_train=false"],
        "nothing to do: do_train, do_eval, do_predict, do_ptq, do_gptq and do_awq are all false. Set one to true.",
    ),
    (
        ["model_name_or_path=null"],
        "model_name_or_path is not set. Name a model directory, a hub model, or embedded:smollm2.",
    ),
    (["output_dir=null"], "output_dir is not set. Name the directory for checkpoints, logs and the result."),
    (
        ["dataset_name_or_path=null"],
        "do_train is true, but no training data is named. Set dataset_name_or_path (a directory with train.json, or a "
        "file) or train_dataset_path.",
    ),
    (
        ["dataset_name_or_path=null", "train_dataset_path=a", "do_eval=true"],
        "do_eval is true, but no evaluation data is named. Set eval_dataset_path, or eval_split_ratio to set "
        "aside some of "
        "the training rows, or evaluation_strategy: no.",
    ),
    (
        ["dataset_name_or_path=null", "train_dataset_path=a", "do_predict=true"],
        "do_predict is true, but no test data is named. Set test_dataset_path, or dataset_name_or_path to a "
        "directory with "
        "test.json.",
    ),
    (
        ["overwrite_output_dir=true", "resume_from_checkpoint=c"],
        "overwrite_output_dir starts anew, resume_from_checkpoint goes on; keep one.",
    ),
    (
        ["sharding=stage4"],
        "sharding: found 'stage4'; allowed: stage1, stage2 or stage3, each with or without offload behind it, "
        "or nothing.",
    ),
    (
        ["sharding=offload"],
        "sharding: found 'offload'; allowed: stage1, stage2 or stage3, each with or without offload behind it, "
        "or nothing.",
    ),
    (
        ["sharding=stage1 offload"],
        "sharding: found 'stage1 offload'; PaddleNLP moves nothing to the host in stage1; allowed: stage1, or stage2 "
        "or stage3 with offload.",
    ),
    (
        ["sharding=stage2 offload"],
        "sharding: found 'stage2 offload'; in stage2 Paddle moves the state of float16 weights only to the host; "
        "allowed: stage2, stage3 offload, or fp16: true with fp16_opt_level: O2.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), RULES, ids=[" ".join(o) for o, _ in RULES])
def test_contradictions(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert str(caught.value).removeprefix("command line: ") == message


def test_one_file_of_training_data_holds_no_evaluation_data(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match="do_eval is true, but no evaluation data is named"):
        load(f"dataset_name_or_path={file}", "evaluation_strategy=epoch")
    load(f"dataset_name_or_path={file}", "evaluation_strategy=epoch", "eval_split_ratio=0.1")
    load(f"dataset_name_or_path={tmp_path}", "evaluation_strategy=epoch")


def test_places_of_a_rule_are_the_lines_of_its_keys(tmp_path) -> None:
    path = tmp_path / "run.json"
    first = '{"model_name_or_path": "m", "output_dir": "o", "dataset_name_or_path": "d",'
    path.write_text(first + '\n"lora": true,\n"fp16": true,\n"prefix_tuning": true}')
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    assert str(caught.value).startswith(f"{path}:2 and {path}:4: lora and prefix_tuning are both true")


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora=true", "lora_path=a"],
        ["prefix_tuning=true", "prefix_path=a"],
        ["lora=true", "use_quick_lora=true"],
        ["fp16=true", "bf16=false"],
        ["no_cuda=true", "device=cpu"],
        ["eval_with_do_generation=true", "packing=true"],
        [
            "load_best_model_at_end=true",
            "evaluation_strategy=epoch",
            "save_strategy=epoch",
            "metric_for_best_model=accuracy",
        ],
        ["load_best_model_at_end=true", "evaluation_strategy=steps", "save_steps=100", "eval_steps=50"],
        ["metric_for_best_model=rougel", "eval_with_do_generation=true"],
        ["dataset_name_or_path=null", "train_dataset_path=a,b", "train_dataset_prob=0.3,0.7", "mix_strategy=random"],
        ["eval_dataset_path=dev.jsonl", "do_eval=true"],
        ["do_train=false", "do_predict=true"],
        ["sharding=stage1"],
        ["sharding=stage2 offload", "fp16=true", "bf16=false", "fp16_opt_level=O2"],
        ["sharding=stage3 offload"],
        ["max_steps=20", "warmup_steps=20"],
    ],
    ids=" ".join,
)
def test_what_fits_together_passes(overrides: list[str]) -> None:
    load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "notice"),
    [
        (["lora_rank=16"], "command line: lora_rank has no effect while lora is off."),
        (
            ["num_prefix_tokens=16", "lora=true"],
            "command line: num_prefix_tokens has no effect while prefix_tuning is off.",
        ),
        (
            ["recompute_granularity=core_attn"],
            "command line: recompute_granularity has no effect while recompute is off.",
        ),
        (["greedy_intokens=true"], "command line: greedy_packing has no effect while packing is off."),
        (["ptq_step=16"], "command line: ptq_step has no effect while do_ptq, do_gptq and do_awq are off."),
        (
            ["max_steps=10", "warmup_steps=20"],
            "command line: warmup_steps 20 is more than max_steps 10; the learning rate will not reach its peak.",
        ),
        (
            ["warmup_steps=5", "warmup_ratio=0.1"],
            "command line: warmup_ratio has no effect, because warmup_steps is 5.",
        ),
        (
            ["dataset_name_or_path=null", "train_dataset_path=a,b", "train_dataset_prob=0.3,0.7"],
            "command line: train_dataset_prob has no effect while mix_strategy is concat, which takes every row once.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_keys_that_do_not_count_in_this_run_are_said(overrides: list[str], notice: str) -> None:
    assert notice in load(*overrides).notices


def test_a_key_left_at_its_default_is_not_worth_a_word() -> None:
    assert load("lora_rank=8", "lora_bias=none").notices == []
