"""Every family learns a handful of rows by every method, until it answers them word for word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlesft.errors import ConfigError
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.models.families import FAMILIES, Family
from paddlesft.tuning.lora import adapter_weights
from tests.families.tuning_runs import OTHER_ROWS, TuningRun, cases, run, write_rows

GREEDY = SamplingOptions(max_new_tokens=48)


@pytest.mark.parametrize(("family", "method"), cases())
def test_rows_are_learned_until_generation_reproduces_them(
    family: str, method: str, tuning_run: Callable[[str, str], TuningRun]
) -> None:
    tuned = tuning_run(family, method)
    assert tuned.losses[-1] < tuned.losses[0] / 2
    replies = [reply for i in range(len(tuned.rows)) for reply in tuned.generate(GREEDY, [i])]
    assert [reply.text for reply in replies] == list(tuned.rows.values())
    assert {reply.finish_reason for reply in replies} == {"stop"}


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_full_fine_tuning_reaches_every_weight(family: str, tuning_run: Callable[[str, str], TuningRun]) -> None:
    tuned = tuning_run(family, "full")
    before, after = (load_file(place / "model.safetensors") for place in (tuned.base, tuned.directory))
    assert set(before) - {"lm_head.weight"} <= set(after)
    assert [name for name, weight in after.items() if np.array_equal(weight, before[name])] == []


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_low_rank_update_has_learned_something(family: str, tuning_run: Callable[[str, str], TuningRun]) -> None:
    weights = adapter_weights(tuning_run(family, "lora").directory)
    assert any("lora_B" in name for name in weights)
    assert [name for name, weight in weights.items() if "lora_B" in name and not weight.any()] == []


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.prefix_tuning], ids=lambda family: family.name)
def test_a_family_without_prefix_tuning_says_why(family: Family, tiny_family: Callable, tmp_path: object) -> None:
    data = write_rows(tmp_path / "rows.json", OTHER_ROWS)
    with pytest.raises(ConfigError) as caught:
        run(tiny_family(family.name), data, tmp_path / "run", "prefix_tuning=true", "max_steps=1")
    assert family.prefix_refusal and family.prefix_refusal in str(caught.value)
    assert "lora: true" in str(caught.value)
