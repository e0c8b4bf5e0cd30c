"""The keys are those of the installed paddlenlp: names, types, defaults and choices cannot drift apart."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any

import pytest

from paddlesft.config.data import DataConfig
from paddlesft.config.fields import default_of
from paddlesft.config.model import ModelConfig
from paddlesft.config.quantization import QuantizationConfig
from paddlesft.config.training import TrainingConfig
from paddlesft.config.values import field_types, members

# Keys that paddlenlp has among its training arguments and that stand in another group here, or under another name.
ELSEWHERE = {
    "use_flash_attention": ModelConfig,
    "eval_packing": DataConfig,
    "dataset_text_field": DataConfig,
    "dataset_num_proc": DataConfig,
    "dataset_batch_size": DataConfig,
    "dataset_kwargs": DataConfig,
}
RENAMED = {
    "max_seq_length": "max_length",
    "sharding_degree": "sharding_parallel_degree",
    "zero_padding": "packing",
    "greedy_zero_padding": "greedy_packing",
}
OWN_TRAINING_KEYS = {"allow_resume_differences", "hang_timeout"}

# Defaults that differ on purpose.
DEFAULTS = {
    "output_dir": "paddlenlp has none and demands the key; here a rule demands it, with the other rules",
    "device": "gpu is wrong on a machine without one; auto takes what is there",
    "logging_steps": "500 steps are more than most fine-tuning runs have",
    "unified_checkpoint": "parts of ranks go on in one layout only; whole files are the safer default",
}
# Types that differ on purpose, beyond what `plain` levels out.
TYPES = {
    "lora_alpha": "a fraction is a valid scale",
}


def plain(tp: Any, default: Any) -> Any:
    """Level out ways of writing the same thing: ``int = None`` is optional, ``Optional[bool] = False`` is not."""
    kinds = set(members(tp)) - {type(None)}
    kinds = {list if (typing.get_origin(k) or k) is list else k for k in kinds}
    kinds = {dict if (typing.get_origin(k) or k) is dict else k for k in kinds}
    kinds = {
        str if typing.get_origin(k) is typing.Literal or (isinstance(k, type) and issubclass(k, enum.Enum)) else k
        for k in kinds
    }
    return frozenset(kinds), default is None


def entries(cls: type) -> dict[str, tuple[Any, Any]]:
    hints = typing.get_type_hints(cls)
    return {f.name: (hints.get(f.name, f.type), default_of(f)) for f in dataclasses.fields(cls)}


@pytest.fixture(scope="module")
def theirs() -> dict[str, dict[str, tuple[Any, Any]]]:
    from paddlenlp.trl import DataConfig as TheirData
    from paddlenlp.trl import ModelConfig as TheirModel
    from paddlenlp.trl import QuantConfig as TheirQuantization
    from paddlenlp.trl import SFTConfig

    return {
        "training": entries(SFTConfig),
        "model": entries(TheirModel),
        "data": entries(TheirData),
        "quantization": entries(TheirQuantization),
    }


def compare(name: str, ours: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    (our_type, our_default), (their_type, their_default) = ours, other
    if isinstance(their_default, types.FunctionType):  # QuantConfig.skip_list_names: a function by mistake
        their_default = their_default()
    if isinstance(their_default, enum.Enum):
        their_default = their_default.value
    if name in DEFAULTS:
        assert our_default != their_default, f"{name} is no difference any more: {DEFAULTS[name]}"
    else:
        assert our_default == their_default, name
        if name not in TYPES:
            assert plain(our_type, our_default) == plain(their_type, their_default), name


def test_training_keys_are_those_of_sftconfig(theirs) -> None:
    ours, other = entries(TrainingConfig), theirs["training"]
    assert set(other) - set(ours) == set(ELSEWHERE) | {"max_seq_length", "sharding_degree"}
    assert set(ours) - set(other) == OWN_TRAINING_KEYS
    for name in set(ours) & set(other):
        compare(name, ours[name], other[name])
    for name, cls in ELSEWHERE.items():
        compare(name, entries(cls)[name], other[name])


@pytest.mark.parametrize(
    ("group", "cls"), [("model", ModelConfig), ("data", DataConfig), ("quantization", QuantizationConfig)]
)
def test_other_groups_cover_paddlenlps(theirs, group: str, cls: type) -> None:
    ours, other = entries(cls), theirs[group]
    missing = set(other) - set(ours)
    assert missing == {name for name in RENAMED if name in other}
    for name in set(other) & set(ours):
        compare(name, ours[name], other[name])


def test_old_names_are_aliases(theirs) -> None:
    for old, new in RENAMED.items():
        cls = next(c for c in (ModelConfig, DataConfig, TrainingConfig) if new in entries(c))
        spec = next(f for f in dataclasses.fields(cls) if f.name == new)
        assert old in spec.metadata["aliases"]


def test_choices_are_paddlenlps() -> None:
    from paddlenlp.trainer.trainer_utils import IntervalStrategy, OptimizerNames, SchedulerType

    for key, kind in (
        ("evaluation_strategy", IntervalStrategy),
        ("save_strategy", IntervalStrategy),
        ("logging_strategy", IntervalStrategy),
        ("lr_scheduler_type", SchedulerType),
        ("optim", OptimizerNames),
    ):
        assert set(typing.get_args(field_types(TrainingConfig)[key])) == {member.value for member in kind}


def test_every_default_makes_arguments_that_paddlenlp_takes(tmp_path) -> None:
    from paddlenlp.trl import SFTConfig

    arguments = TrainingConfig(output_dir=str(tmp_path / "out")).paddlenlp_arguments()
    assert "device" not in arguments and "allow_resume_differences" not in arguments
    assert SFTConfig(**arguments).output_dir == str(tmp_path / "out")
    assert TrainingConfig(output_dir="o", device="cpu").paddlenlp_arguments()["device"] == "cpu"
