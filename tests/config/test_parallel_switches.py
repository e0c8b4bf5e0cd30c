"""Switches of the parallel keys: PaddleNLP's names, what counts, and what is said about the others."""

from __future__ import annotations

import inspect
import re

import pytest

from paddlesft.config import load_run_config
from paddlesft.config.parallel_switches import SWITCHES, effective, switches_in
from paddlesft.errors import ConfigError

BASE = ("model_name_or_path=m", "output_dir=o", "dataset_name_or_path=d")


@pytest.mark.parametrize("key", SWITCHES)
def test_the_switches_are_those_that_paddlenlp_accepts(key: str) -> None:
    """Its checks name them in a list behind ``if x not in``; the key's help adds those of auto-parallel training."""
    from paddlenlp.trainer import TrainingArguments, training_args

    source = inspect.getsource(training_args)
    variable = "mp_config" if key.startswith("tensor") else key
    lists = re.findall(rf"for x in {variable}:\s+if len\(x\) > 0:\s+if x not in \[(.*?)\]", source, re.DOTALL)
    accepted = {name for found in lists for name in re.findall(r'"(\w+)"', found)}
    helped = set(re.findall(r"^(\w+),", TrainingArguments.__dataclass_fields__[key].metadata["help"], re.MULTILINE))
    assert accepted | helped == set(SWITCHES[key])


def test_commas_and_blanks_separate() -> None:
    assert switches_in("a, b  c,a") == ["a", "b", "c"]
    assert switches_in("") == []


def test_paddlenlp_gets_the_switches_that_count() -> None:
    run = load_run_config(None, [*BASE, "sharding_parallel_config=split_param,disable_stage1_reduce_avg"])
    assert run.training.paddlenlp_arguments()["sharding_parallel_config"] == "disable_stage1_reduce_avg"
    assert effective("pipeline_parallel_config", "enable_timer disable_p2p_cache_shape") == "disable_p2p_cache_shape"


def test_paddlenlp_gets_no_key_without_effect() -> None:
    run = load_run_config(None, [*BASE, "save_sharded_model=true", "data_parallel_config=x", "release_grads=true"])
    arguments = run.training.paddlenlp_arguments()
    assert arguments["release_grads"] is True
    assert not {"save_sharded_model", "data_parallel_config", "distributed_dataloader"} & set(arguments)


@pytest.mark.parametrize(
    ("override", "notice"),
    [
        (
            "sharding_parallel_config=split_param",
            "split_param of sharding_parallel_config has no effect: checkpoints keep the optimizer's state for each "
            "weight by its name, not in one fused block.",
        ),
        (
            "tensor_parallel_config=enable_mp_skip_c_identity",
            "enable_mp_skip_c_identity of tensor_parallel_config has no effect without enable_mp_async_allreduce.",
        ),
    ],
)
def test_a_switch_without_effect_says_why(override: str, notice: str) -> None:
    assert f"command line: {notice}" in load_run_config(None, [*BASE, override]).notices


def test_a_switch_that_counts_says_nothing() -> None:
    both = "tensor_parallel_config=enable_mp_async_allreduce enable_mp_skip_c_identity"
    assert load_run_config(None, [*BASE, both]).notices == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sharding_parallel_config=split_params",
            "command line: sharding_parallel_config: unknown switch 'split_params'; allowed: "
            + ", ".join(SWITCHES["sharding_parallel_config"])
            + " (blanks between them). Did you mean 'split_param'?",
        ),
        (
            "pipeline_parallel_config=disable_p2p_cache_shape use_dualpipev",
            "command line: pipeline_parallel_config: use_dualpipev cannot be had: this version has Paddle's 1F1B and "
            "interleaved schedules only. Remove it.",
        ),
    ],
)
def test_unknown_switches_and_those_that_cannot_be_had_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(None, [*BASE, override])
    assert str(caught.value) == message
