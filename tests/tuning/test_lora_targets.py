"""Targets in the stages of a pipeline; those of whole models are in ``test_lora.py``."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from paddle import nn

from paddlesft.errors import ConfigError
from paddlesft.tuning import lora_targets

STAGES = [{"llama.layers.0.mlp.up_proj": "0.up"}, {"llama.layers.1.mlp.up_proj": "0.up"}]


@pytest.fixture
def first_stage(monkeypatch: pytest.MonkeyPatch) -> nn.Layer:
    """One of two stages, each with a layer."""

    class Stage(nn.Layer):
        pass

    def all_gather_object(found: list[Any], own: bool, group: Any) -> None:
        other = any(lora_targets.re.fullmatch(patterns[0], name) for name in STAGES[1])
        found += [own, other]

    patterns: list[str] = []
    monkeypatch.setattr(lora_targets, "PipelineLayer", Stage)
    monkeypatch.setattr(lora_targets, "linear_layers", lambda model: STAGES[0])
    monkeypatch.setattr(lora_targets, "_stages_group", lambda: None)
    monkeypatch.setattr(lora_targets.dist, "all_gather_object", all_gather_object)
    stage = Stage()
    stage.patterns = patterns
    return stage


@pytest.mark.parametrize(("pattern", "idle"), [(r".*layers\.0\..*", 1), (r".*layers\.1\..*", 0)])
def test_targets_of_some_stages_only_are_refused(first_stage: Any, pattern: str, idle: int) -> None:
    first_stage.patterns.append(pattern)
    with pytest.raises(ConfigError) as refused:
        lora_targets.refuse_idle_stages(first_stage, [pattern])
    assert str(refused.value) == (
        f"lora_target_modules: found targets in the layers of some pipeline stages only; none are in stage {idle} of "
        "2, which would have nothing to train. Take layers of every stage (lora_target_modules: all), or set "
        "pipeline_parallel_degree to 1."
    )


def test_targets_of_all_stages_are_taken(first_stage: Any) -> None:
    first_stage.patterns.append(".*up_proj")
    lora_targets.refuse_idle_stages(first_stage, [".*up_proj"])


def test_an_optimizer_needs_a_parameter() -> None:
    """The reason for the refusal; when paddle mends it, the refusal can go."""
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=[])
    with pytest.raises(IndexError):
        optimizer.step()
