"""Rules that look at several keys at once. They run on the resolved configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paddlesft.config.fields import default_of
from paddlesft.config.parallel_switches import SWITCHES, idle_switches, switch_problems
from paddlesft.config.qlora import idle_qlora_keys, qlora_problems
from paddlesft.config.quantization_rules import idle_quantization_keys, quantization_problems
from paddlesft.config.training_parallel import is_sharding

if TYPE_CHECKING:
    from paddlesft.config.resolve import RunConfig

# What a rule finds: the keys it looked at, and the text. The places of those keys that the user gave are put in front;
# the finding is dropped when one of them is wrong anyway.
Finding = tuple[tuple[str, ...], str]

_LOSS_METRICS = ("loss", "perplexity", "accuracy")
_GENERATION_METRICS = ("rouge1", "rouge2", "rougel", "bleu4")

# Keys that only count together with another one: when it is off, whoever sets them is told.
_NEEDS: dict[str, tuple[str, ...]] = {
    "lora": (
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_bias",
        "use_quick_lora",
        "rslora",
        "lora_plus_scale",
    ),
    "prefix_tuning": ("num_prefix_tokens", "prefix_projection", "prefix_projection_hidden_size"),
    "recompute": (
        "recompute_granularity",
        "no_recompute_layers",
        "recompute_use_reentrant",
    ),
    "packing": ("greedy_packing", "eval_packing"),
}


def find_problems(run: RunConfig) -> Iterator[Finding]:
    """Yield every contradiction between keys of the resolved configuration."""
    for rule in (
        _method,
        _precision,
        _lengths,
        _evaluation,
        _best_model,
        _metric,
        _data,
        _needed,
        _schedule,
        _processes,
        quantization_problems,
        qlora_problems,
    ):
        for keys, text in rule(run):
            given = [key for key in keys if run.was_set(key)]
            yield keys, f"{_at(run, *given)}: {text}" if given else text


def find_idle_keys(run: RunConfig) -> list[str]:
    """Return a notice for each key that was set but does not count, because the key it belongs to is off."""
    flat = run.flat()
    notices = []
    for switch, keys in _NEEDS.items():
        if flat[switch]:
            continue
        for key in keys:
            _, spec = run.find(key)
            if run.was_set(key) and flat[key] != default_of(spec):
                notices.append(f"{run.origins[key].place}: {key} has no effect while {switch} is off.")
    notices += [*idle_quantization_keys(run), *idle_qlora_keys(run)]
    for key in SWITCHES:
        notices += [f"{run.origins[key].place}: {text}" for text in idle_switches(key, flat[key])]
    return notices


def _at(run: RunConfig, *keys: str) -> str:
    """``lora.json:3 and command line``: where the keys were set."""
    return " and ".join(dict.fromkeys(run.origins[key].place for key in keys))


def _method(run: RunConfig) -> Iterator[Finding]:
    model = run.model
    if model.lora and model.prefix_tuning:
        yield (
            ("lora", "prefix_tuning"),
            "lora and prefix_tuning are both true; a run trains one of them. "
            "Set one to false (both false: the whole model is trained).",
        )
    for path, switch in (("lora_path", "lora"), ("prefix_path", "prefix_tuning")):
        if getattr(model, path) and not getattr(model, switch):
            yield (
                (path, switch),
                f"{path} is set, but {switch} is false. Set {switch}: true to go on training that "
                f"adapter, or remove {path}.",
            )
    if model.lora and model.use_quick_lora and (model.lora_dropout > 0 or model.lora_bias != "none"):
        yield (
            ("lora", "use_quick_lora", "lora_dropout", "lora_bias"),
            "use_quick_lora works with lora_dropout 0 and lora_bias none only; found "
            f"lora_dropout {model.lora_dropout:g} and lora_bias {model.lora_bias}. Change those or set it to false.",
        )
    if not model.continue_training:
        yield (
            ("continue_training",),
            "continue_training: false asks for random weights; training from scratch is "
            "not built yet in this version. Allowed: true.",
        )


def _precision(run: RunConfig) -> Iterator[Finding]:
    for a, b in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if getattr(run.training, a) and getattr(run.training, b):
            yield (a, b), f"{a} and {b} are both true; keep one. bf16 is safer where the GPU has it."
    if run.training.no_cuda and run.training.device not in ("auto", "cpu"):
        yield (
            ("no_cuda", "device"),
            f"no_cuda: true contradicts device: {run.training.device}. Keep one.",
        )


def _lengths(run: RunConfig) -> Iterator[Finding]:
    data = run.data
    if data.src_length >= data.max_length:
        yield (
            ("src_length", "max_length"),
            f"src_length {data.src_length} leaves no room for a reply in max_length "
            f"{data.max_length}. src_length must be smaller than max_length.",
        )
    if data.pad_to_max_length and data.pad_to_multiple_of and data.max_length % data.pad_to_multiple_of:
        yield (
            ("pad_to_max_length", "pad_to_multiple_of", "max_length"),
            f"max_length {data.max_length} is no multiple of pad_to_multiple_of "
            f"{data.pad_to_multiple_of}, yet pad_to_max_length is true. Change one of them.",
        )
    new, low = run.generation.max_new_tokens, run.generation.min_new_tokens
    if new is not None and low > new:
        yield (
            ("max_new_tokens", "min_new_tokens"),
            f"min_new_tokens {low} is more than max_new_tokens {new}.",
        )


def _evaluation(run: RunConfig) -> Iterator[Finding]:
    data, training = run.data, run.training
    if data.eval_with_do_generation and data.eval_packing:
        yield (
            ("eval_with_do_generation", "eval_packing"),
            "replies cannot be generated for packed rows. Set "
            "eval_packing: false (packing itself may stay on for training).",
        )
    if data.eval_with_do_generation and training.prediction_loss_only:
        yield (
            ("eval_with_do_generation", "prediction_loss_only"),
            "eval_with_do_generation and prediction_loss_only are both true; keep one.",
        )
    if training.do_train and training.evaluation_strategy != "no" and not training.do_eval:
        yield (
            ("do_eval", "evaluation_strategy"),
            "do_eval: false contradicts evaluation_strategy: "
            f"{training.evaluation_strategy}. Set evaluation_strategy: no, or do_eval: true.",
        )


def _best_model(run: RunConfig) -> Iterator[Finding]:
    training = run.training
    if not training.load_best_model_at_end:
        return
    if training.do_train and training.evaluation_strategy != training.save_strategy:
        yield (
            ("load_best_model_at_end", "evaluation_strategy", "save_strategy", "do_eval"),
            "load_best_model_at_end needs a checkpoint for each evaluation; found "
            f"evaluation_strategy {training.evaluation_strategy} and save_strategy {training.save_strategy}. "
            "Set both to the same: steps or epoch.",
        )
    elif training.do_train and training.save_strategy == "no":
        yield (
            ("load_best_model_at_end", "evaluation_strategy", "save_strategy"),
            "load_best_model_at_end needs evaluations and checkpoints; found "
            "evaluation_strategy no and save_strategy no. Set both to steps or epoch.",
        )
    elif training.save_strategy == "steps" and training.eval_steps and training.save_steps % training.eval_steps:
        yield (
            ("load_best_model_at_end", "save_steps", "eval_steps"),
            "load_best_model_at_end needs save_steps to be a multiple of "
            f"eval_steps; found {training.save_steps} and {training.eval_steps}.",
        )


def _metric(run: RunConfig) -> Iterator[Finding]:
    training = run.training
    if training.metric_for_best_model is None:
        return
    metric = training.metric_for_best_model.removeprefix("eval_")
    possible = ("loss", "perplexity") if training.prediction_loss_only else _LOSS_METRICS
    if run.data.eval_with_do_generation:
        possible += _GENERATION_METRICS
    if metric not in possible:
        missing = "true" if metric in _GENERATION_METRICS else ""
        yield (
            ("metric_for_best_model", "eval_with_do_generation", "prediction_loss_only"),
            f"metric_for_best_model: found {metric!r}; evaluation yields {', '.join(possible)}."
            + (f" Set eval_with_do_generation: {missing} for {metric}." if missing else ""),
        )


def _data(run: RunConfig) -> Iterator[Finding]:
    data = run.data
    if data.dataset_name_or_path and data.train_dataset_path:
        yield (
            ("dataset_name_or_path", "train_dataset_path"),
            "dataset_name_or_path and train_dataset_path both name "
            "training data; keep one. (eval_dataset_path and test_dataset_path may stand beside either.)",
        )
    if data.eval_split_ratio and data.eval_dataset_path:
        yield (
            ("eval_split_ratio", "eval_dataset_path"),
            "eval_split_ratio takes evaluation rows from the training data, eval_dataset_path names others; keep one.",
        )
    for key in ("train_dataset_path", "eval_dataset_path", "test_dataset_path"):
        if getattr(data, key) == []:
            yield (key,), f"{key} is an empty list; name at least one file or leave the key out."
    shares = data.train_dataset_prob
    if shares is None:
        return
    paths = data.train_dataset_path or []
    if len(shares) != max(1, len(paths)):
        yield (
            ("train_dataset_prob", "train_dataset_path"),
            f"train_dataset_prob has {len(shares)} numbers for {max(1, len(paths))} training paths; give one for each.",
        )
    elif min(shares) <= 0 or abs(sum(shares) - 1) > 1e-3:
        yield (
            ("train_dataset_prob",),
            "train_dataset_prob must be positive numbers that add up to 1; found "
            f"{', '.join(f'{s:g}' for s in shares)} (sum {sum(shares):g}).",
        )
    elif len(shares) > 1 and data.mix_strategy == "concat" and len(set(shares)) > 1:
        run.notices.append(
            f"{_at(run, 'train_dataset_prob')}: train_dataset_prob has no effect while mix_strategy is concat, "
            "which takes every row once."
        )


def _needed(run: RunConfig) -> Iterator[Finding]:
    training, data = run.training, run.data
    quantizes = bool(run.quantization.asked)
    if not (training.do_train or training.do_eval or training.do_predict or quantizes):
        yield (
            ("do_train", "do_eval", "do_predict", "do_ptq", "do_gptq", "do_awq", "do_qat"),
            "nothing to do: do_train, do_eval, do_predict, do_ptq, do_gptq and do_awq are all false. Set one to true.",
        )
        return
    if not run.model.model_name_or_path:
        yield (
            ("model_name_or_path",),
            "model_name_or_path is not set. Name a model directory, a hub model, or embedded:smollm2.",
        )
    if not training.output_dir:
        yield ("output_dir",), "output_dir is not set. Name the directory for checkpoints, logs and the result."
    if training.do_train and not (data.dataset_name_or_path or data.train_dataset_path):
        yield (
            ("dataset_name_or_path", "train_dataset_path"),
            "do_train is true, but no training data is named. Set dataset_name_or_path (a directory with train.json, "
            "or a file) or train_dataset_path.",
        )
    # A directory may hold its own evaluation split; a single file is training data and nothing else.
    one_file = bool(data.dataset_name_or_path) and Path(data.dataset_name_or_path).expanduser().is_file()
    has_split = bool(data.dataset_name_or_path) and not one_file
    only_quantizes = quantizes and not training.do_train  # its report measures on what rows there are
    if training.do_eval and not (has_split or data.eval_dataset_path or data.eval_split_ratio or only_quantizes):
        yield (
            ("dataset_name_or_path", "train_dataset_path", "eval_dataset_path", "eval_split_ratio", "do_eval"),
            "do_eval is true, but no evaluation data is named. Set eval_dataset_path, or eval_split_ratio to set aside "
            "some of the training rows, or evaluation_strategy: no.",
        )
    if training.do_predict and not (data.dataset_name_or_path or data.test_dataset_path or only_quantizes):
        yield (
            ("dataset_name_or_path", "test_dataset_path", "do_predict"),
            "do_predict is true, but no test data is named. Set test_dataset_path, or dataset_name_or_path to a "
            "directory with test.json.",
        )


def _schedule(run: RunConfig) -> Iterator[Finding]:
    training = run.training
    if training.warmup_steps > 0 and training.warmup_ratio > 0:
        run.notices.append(
            f"{_at(run, 'warmup_ratio')}: warmup_ratio has no effect, because warmup_steps is {training.warmup_steps}."
        )
    if 0 < training.max_steps < training.warmup_steps:
        run.notices.append(
            f"{_at(run, 'max_steps', 'warmup_steps')}: warmup_steps {training.warmup_steps} is more than max_steps "
            f"{training.max_steps}; the learning rate will not reach its peak."
        )
    if training.overwrite_output_dir and training.resume_from_checkpoint:
        yield (
            ("overwrite_output_dir", "resume_from_checkpoint"),
            "overwrite_output_dir starts anew, resume_from_checkpoint goes on; keep one.",
        )


def _processes(run: RunConfig) -> Iterator[Finding]:
    training = run.training
    if not is_sharding(training.sharding):
        yield (
            ("sharding",),
            f"sharding: found {training.sharding!r}; allowed: stage1, stage2 or stage3, each with or without offload "
            "behind it, or nothing.",
        )
    elif training.sharding.startswith("stage1 "):
        yield (
            ("sharding",),
            f"sharding: found {training.sharding!r}; PaddleNLP moves nothing to the host in stage1; allowed: stage1, "
            "or stage2 or stage3 with offload.",
        )
    elif training.sharding.startswith("stage2 ") and not (training.fp16 and training.fp16_opt_level == "O2"):
        yield (
            ("sharding", "fp16", "fp16_opt_level"),
            f"sharding: found {training.sharding!r}; in stage2 Paddle moves the state of float16 weights only to the "
            "host; allowed: stage2, stage3 offload, or fp16: true with fp16_opt_level: O2.",
        )
    for key in SWITCHES:
        for text in switch_problems(key, getattr(training, key)):
            yield (key,), text
