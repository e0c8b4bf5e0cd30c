"""The resolved run: derived values with their reasons, the table, and the saved files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddlesft.config import RUN_GROUPS, RunConfig, load_run_config
from paddlesft.config.derived import fall_back_to_float32, number_of_processes
from paddlesft.errors import ConfigError

BASE = ["model_name_or_path=m", "output_dir=out", "dataset_name_or_path=data"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)


def load(*overrides: str) -> RunConfig:
    return load_run_config(None, [*BASE, *overrides])


@pytest.mark.parametrize(
    ("overrides", "key", "value", "why"),
    [
        ([], "do_train", True, "no do_... key is given"),
        (["lora=true", "lora_rank=6"], "lora_alpha", 12.0, "2 * lora_rank"),
        (["do_train=true", "evaluation_strategy=epoch"], "do_eval", True, "evaluation_strategy is epoch"),
        (
            ["do_train=true", "do_eval=true"],
            "evaluation_strategy",
            "steps",
            "do_eval is true; evaluate whenever a checkpoint is saved",
        ),
        (
            ["do_train=true", "do_eval=true", "save_strategy=no"],
            "evaluation_strategy",
            "epoch",
            "do_eval is true; evaluate whenever a checkpoint is saved",
        ),
        (["evaluation_strategy=steps", "save_steps=70"], "eval_steps", 70, "save_steps"),
        (
            ["load_best_model_at_end=true", "evaluation_strategy=steps"],
            "metric_for_best_model",
            "loss",
            "the usual choice for load_best_model_at_end",
        ),
        (["metric_for_best_model=eval_loss"], "greater_is_better", False, "eval_loss is better when smaller"),
        (["metric_for_best_model=perplexity"], "greater_is_better", False, "perplexity is better when smaller"),
        (["metric_for_best_model=accuracy"], "greater_is_better", True, "accuracy is better when greater"),
        (["packing=true"], "eval_packing", True, "packing"),
        (
            ["packing=true", "eval_with_do_generation=true"],
            "eval_packing",
            False,
            "replies are generated for one conversation at a time",
        ),
        (["max_length=600"], "src_length", 300, "half of max_length"),
        (["do_predict=true", "max_length=1500"], "max_new_tokens", 476, "max_length - src_length"),
        (["no_cuda=true"], "device", "cpu", "no_cuda is true"),
        (["fp16=true", "device=cpu"], "fp16", False, "a CPU computes in float32 (was true, command line)"),
        (
            ["benchmark=true", "do_eval=true"],
            "do_eval",
            False,
            "benchmark measures speed only (was true, command line)",
        ),
        (["benchmark=true"], "save_strategy", "no", "benchmark measures speed only"),
    ],
)
def test_derived_values_and_their_reasons(overrides: list[str], key: str, value: object, why: str) -> None:
    run = load(*overrides)
    assert run.flat()[key] == value
    assert str(run.origins[key]) == f"derived: {why}"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["lora=true", "lora_alpha=4"], "lora_alpha", 4.0),
        (["do_eval=true"], "do_train", False),
        (["do_train=true"], "evaluation_strategy", "no"),
        (["evaluation_strategy=steps", "eval_steps=3"], "eval_steps", 3),
        (["metric_for_best_model=loss", "greater_is_better=true"], "greater_is_better", True),
        (["packing=true", "eval_packing=false"], "eval_packing", False),
        (["do_predict=true", "max_new_tokens=5"], "max_new_tokens", 5),
        ([], "max_new_tokens", None),
        ([], "lora_alpha", None),
        ([], "device", "auto"),
        (["bf16=true"], "bf16", True),
    ],
)
def test_what_the_user_says_is_not_derived(overrides: list[str], key: str, value: object) -> None:
    run = load(*overrides)
    assert run.flat()[key] == value
    assert run.origins[key].kind != "derived"


def test_half_precision_without_a_gpu_is_announced_and_can_be_turned_off() -> None:
    run = load("fp16=true", "amp_master_grad=true")
    assert "command line: fp16 is for GPUs. If this machine has none, the run is in float32." in run.notices
    assert fall_back_to_float32(run, "no GPU here") == ["fp16", "amp_master_grad"]
    assert (run.training.fp16, run.training.amp_master_grad) == (False, False)
    assert str(run.origins["fp16"]) == "derived: no GPU here (was true, command line)"
    assert fall_back_to_float32(run, "again") == []


@pytest.mark.parametrize(("environment", "number"), [(None, 1), ("4", 4), ("x", 1), ("0", 1)])
def test_processes_are_counted_as_the_launcher_says(monkeypatch, environment: str | None, number: int) -> None:
    if environment is not None:
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", environment)
    assert number_of_processes() == number


def test_derive_checks_key_and_value() -> None:
    run = load()
    run.derive("lora_rank", 4, "because")
    assert (run.model.lora_rank, str(run.origins["lora_rank"])) == (4, "derived: because")
    with pytest.raises(KeyError):
        run.derive("lora_rang", 4, "because")
    with pytest.raises(ValueError, match=r"lora_rank: 0 \(an integer\) derived; allowed: an integer at least 1"):
        run.derive("lora_rank", 0, "because")
    with pytest.raises(ValueError, match=r"lora_rank: true \(a boolean\) derived"):
        run.derive("lora_rank", True, "because")


def test_the_table_shows_what_was_set_first_and_every_key_once() -> None:
    run = load("lora=true", "seed=3")
    rows = run.table()
    kinds = [origin == "default" for _, _, origin in rows]
    assert kinds == sorted(kinds)
    assert sorted(key for key, _, _ in rows) == sorted(run.flat())
    assert ("seed", "3", "command line") in rows
    assert ("lora_alpha", "16.0", "derived: 2 * lora_rank") in rows
    assert ("lora_dropout", "0.0", "default") in rows


def test_secrets_are_neither_shown_nor_saved(tmp_path: Path) -> None:
    run = load("wandb_api_key=abc123", "aistudio_token=abc123")
    assert run.training.wandb_api_key == "abc123"
    assert "abc123" not in str(run.table())
    saved = run.save(tmp_path)
    assert "abc123" not in saved.read_text() + (tmp_path / "run_config.origins.json").read_text()


def test_the_saved_file_is_a_config_file_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "in.yaml"
    path.write_text('system_prompt: "Say \\"no\\" # twice\\n: \\U0001F600 \\u4f60"\nlora: true\nsave_strategy: no\n'
                    "learning_rate: 3e-4\nreport_to: visualdl\nstop: ['\\n', yes, "
                    "'1']\n", encoding="utf-8")  # fmt: skip
    run = load_run_config(path, BASE)
    saved = run.save(tmp_path / "run")
    assert saved == tmp_path / "run" / "run_config.yaml"
    again = load_run_config(saved)
    assert again.flat() == run.flat()
    assert again.notices == []
    assert f"lora: true  # {path}:2\n" in saved.read_text()
    assert 'save_strategy: "no"' in saved.read_text()
    origins = json.loads((tmp_path / "run" / "run_config.origins.json").read_text())
    assert origins["lora"] == {"kind": "file", "where": f"{path}:2", "note": ""}
    assert origins["lora_alpha"] == {"kind": "derived", "where": "", "note": "2 * lora_rank"}
    assert sorted(p.name for p in saved.parent.iterdir()) == ["run_config.origins.json", "run_config.yaml"]


TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    prompt=TEXT,
    rate=st.floats(1e-12, 1e6),
    stop=st.lists(TEXT, max_size=3),
    columns=st.dictionaries(TEXT, TEXT, max_size=2),
)
def test_any_text_and_number_survives_saving(tmp_path: Path, prompt, rate, stop, columns) -> None:
    run = load()
    for key, value in (("system_prompt", prompt), ("learning_rate", rate), ("stop", stop), ("column_map", columns)):
        run.derive(key, value, "test #1\nsecond line")
    assert load_run_config(run.save(tmp_path)).flat() == run.flat()


def test_saving_again_replaces_and_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    saved = load("seed=1").save(tmp_path)
    load("seed=2").save(tmp_path)
    assert "seed: 2" in saved.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        load("seed=3").save(tmp_path)
    assert "seed: 2" in saved.read_text()
    assert len(list(tmp_path.iterdir())) == 2


def test_keys_are_unique_over_all_groups_and_flat_holds_them_all() -> None:
    import dataclasses

    names = [f.name for cls in RUN_GROUPS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert set(load().flat()) == set(names)


def test_an_error_of_the_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_run_config(tmp_path / "no.yaml")
