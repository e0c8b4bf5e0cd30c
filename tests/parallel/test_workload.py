"""Numbers that are trained, counted from config.json, are those of PaddleNLP's models."""

from __future__ import annotations

from typing import Any

import pytest

from paddlesft.config.fields import default_of
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.parallel.workload import MOMENT_BYTES, Workload, workload_of
from tests.models.test_tensor_plans import tiny_config
from tests.parallel.layout_requests import run_with


def tiny_model(name: str) -> Any:
    import paddlenlp.transformers as zoo

    family = family_named(name)
    config = getattr(zoo, family.config_class).from_dict(tiny_config(family))
    return getattr(zoo, family.causal_lm)(config)


def trainable(model: Any) -> int:
    unique = {id(weight): weight for _, weight in model.named_parameters() if not weight.stop_gradient}
    return sum(int(weight.size) for weight in unique.values())


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_trained_numbers_of_each_method_are_those_of_the_model(name: str) -> None:
    from paddlesft.tuning.lora import add_lora
    from paddlesft.tuning.prefix import add_prefix

    family = family_named(name)
    plan = family.plan(tiny_config(family))
    if not plan.tied_name:  # a tied head is tied when weights are loaded
        assert Workload().trained(plan.tensors(), 1) == trainable(tiny_model(name))

    run = run_with(lora=True, lora_rank=4, lora_alpha=8.0)
    counted = workload_of(run, family, plan).trained(plan.tensors(), 1)
    assert counted == trainable(add_lora(tiny_model(name), family, run.model))

    if family.prefix_tuning:
        for keys in ({}, {"prefix_projection": True, "prefix_projection_hidden_size": 24}):
            run = run_with(prefix_tuning=True, num_prefix_tokens=6, **keys)
            work = workload_of(run, family, plan)
            assert work.trained(plan.tensors(), 1) == 0
            assert work.prefix_numbers(plan) == trainable(add_prefix(tiny_model(name), family, run.model))


def test_lora_divides_the_side_that_tensor_parallelism_divides() -> None:
    plan = family_named("llama").plan({"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16})
    work = Workload(method="lora", lora_rank=2, lora_targets=(".*q_proj.*",))
    layer = [tensor for tensor in plan.layer]
    assert work.trained(layer, 1) == 2 * (8 + 8)
    assert work.trained(layer, 2) == 2 * (8 + 4)  # column: A whole, B divided
    rows = Workload(method="lora", lora_rank=2, lora_targets=(".*down_proj.*",))
    assert rows.trained(layer, 2) == 2 * (8 + 8)  # row: A [16, r] divided, B whole


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (4, 4, 8, 4)),
        ({"bf16": True}, (4, 4, 8, 2)),  # O1 casts operations only
        ({"bf16": True, "fp16_opt_level": "O2"}, (2, 2, 12, 2)),  # ZeRO's 2 + 2 + 12
        ({"bf16": True, "fp16_opt_level": "O2", "amp_master_grad": True}, (2, 4, 12, 2)),
        ({"bf16": True, "fp16_opt_level": "O2", "optim": "adamw_16bit_moment"}, (2, 2, 8, 2)),
        ({"dtype": "bfloat16"}, (2, 2, 12, 2)),
        ({"optim": "adafactor"}, (4, 4, 0, 4)),
    ],
)
def test_bytes_of_a_number_follow_from_the_precision_keys(keys: dict[str, Any], expected: tuple[int, ...]) -> None:
    family = family_named("llama")
    work = workload_of(run_with(**keys), family, family.plan({}))
    assert (work.weight_bytes, work.gradient_bytes, work.state_bytes, work.activation_bytes) == expected
    assert work.score_bytes == (6 if work.activation_bytes == 2 else 4)


def test_every_optimizer_of_the_config_has_its_bytes() -> None:
    import typing

    from paddlesft.config.training import ScheduleConfig
    from paddlesft.config.values import field_types

    assert set(MOMENT_BYTES) == set(typing.get_args(field_types(ScheduleConfig)["optim"]))


def test_switches_of_a_run_reach_the_workload() -> None:
    family = family_named("llama")
    run = run_with(recompute=True, recompute_granularity="core_attn", use_flash_attention=True, max_length=512,
                   tensor_parallel_output=True,
                   lora=True, lora_target_modules=".*v_proj.*")  # fmt: skip
    work = workload_of(run, family, family.plan({}))
    assert (work.recompute, work.flash_attention, work.length) == ("core_attn", True, 512)
    assert (work.divided_logits, work.regather, work.lora_targets) == (True, False, (".*v_proj.*",))
    assert default_of(run.find("recompute")[1]) is False
    assert workload_of(run_with(), family, family.plan({})).recompute == "none"


def test_no_key_of_paddlenlp_makes_gathered_inputs_be_gathered_again() -> None:
    import inspect

    from paddlenlp.trainer import TrainingArguments

    assert "recompute_allgather" not in inspect.getsource(TrainingArguments)
