"""Every family learns a handful of rows by every method, until it answers them word for word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlesft.errors import ConfigError
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models import families
from paddlesft.models.families import FAMILIES
from paddlesft.tuning.lora import adapter_weights
from tests.families.tuning_runs import OTHER_ROWS, TuningRun, answers, cases, prompts_of, run, write_rows

GREEDY = SamplingOptions(max_new_tokens=48)


@pytest.mark.parametrize(("family", "method"), cases())
def test_rows_are_learned_until_generation_reproduces_them(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    base = load_for_inference(tuned.base)
    before = answers(base, prompts_of(base, tuned.data), GREEDY)
    assert [reply.text for reply in before] != list(tuned.rows.values())
    assert tuned.losses[-1] < tuned.losses[0] / 4
    replies = [reply for i in range(len(tuned.rows)) for reply in tuned.generate(GREEDY, [i])]
    assert [reply.text for reply in replies] == list(tuned.rows.values())
    assert {reply.finish_reason for reply in replies} == {"stop"}


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_full_fine_tuning_reaches_every_weight(family: str, tuning_run: Callable[[str, str], TuningRun]) -> None:
    tuned = tuning_run(family, "full")
    before, after = (load_file(place / "model.safetensors") for place in (tuned.base, tuned.directory))
    weights = {name for name, weight in tuned.loaded.model.named_parameters() if name in after}
    assert len(weights) > 10
    assert [name for name in weights if np.array_equal(after[name], before[name])] == []


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_low_rank_update_has_learned_something(family: str, tuning_run: Callable[[str, str], TuningRun]) -> None:
    weights = adapter_weights(tuning_run(family, "lora").directory)
    assert any("lora_B" in name for name in weights)
    assert [name for name, weight in weights.items() if "lora_B" in name and not weight.any()] == []


def test_a_family_without_prefix_tuning_says_why(
    tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "its cache has no place for one"
    rows = [dataclasses.replace(row, prefix_tuning=False, prefix_refusal=reason) for row in FAMILIES]
    monkeypatch.setattr(families, "FAMILIES", tuple(rows))
    data = write_rows(tmp_path / "rows.json", OTHER_ROWS)
    with pytest.raises(ConfigError, match=reason) as caught:
        run(tiny_family("gpt"), data, tmp_path / "run", "prefix_tuning=true", "max_steps=1")
    assert "family gpt" in str(caught.value) and "lora: true" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_family_that_cannot_take_a_prefix_has_a_reason() -> None:
    assert [row.name for row in FAMILIES if bool(row.prefix_refusal) == row.prefix_tuning] == []
