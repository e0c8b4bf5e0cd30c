"""The loader: exact names, all errors at once with their place, and the order of authority."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddlesft.config import load_arguments, load_run_config
from paddlesft.config.loader import in_order_of_lines
from paddlesft.config.model import ModelConfig
from paddlesft.config.training import TrainingConfig
from paddlesft.errors import ConfigError, UserError

GROUPS = {"model": ModelConfig, "training": TrainingConfig}


def write(tmp_path: Path, text: str, name: str = "run.json") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path | None, *overrides: str, groups: dict = GROUPS) -> str:
    with pytest.raises(ConfigError) as caught:
        load_arguments(groups, path, overrides)
    assert isinstance(caught.value, UserError) and caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "") if path else str(caught.value)


def test_defaults_without_any_input() -> None:
    instances, origins, notices = load_arguments(GROUPS)
    assert instances == {"model": ModelConfig(), "training": TrainingConfig()}
    assert {str(origin) for origin in origins.values()} == {"default"}
    assert notices == []


def test_all_errors_of_a_file_and_the_command_line_come_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"learning_rat": 0.5,\n "do_train": "yes",\n "lora_rank": true,\n "seed": null,\n "lora_rank": 8,\n'
        ' "lr_scheduler_type": "cosin",\n "warmup_ratio": 1.5,\n "qqq": 1,\n "training": {"seed": 1}}',
    )
    assert error_of(path, "--max_steps", "ten", "wat").splitlines() == [
        "11 problems in run.json:".replace("run.json", str(path).replace(f"{tmp_path}/", "")),
        "  run.json:1: unknown key 'learning_rat'. Did you mean 'learning_rate'?",
        '  run.json:2: do_train: found "yes" (text); allowed: true or false.',
        "  run.json:3: lora_rank: found true (a boolean); allowed: an integer at least 1.",
        "  run.json:4: seed: found null; allowed: an integer at least 0 and at most 4294967295.",
        "  run.json:5: lora_rank is given twice; it stands in line 3 already. Keep one.",
        '  run.json:6: lr_scheduler_type: found "cosin" (text); allowed: one of linear, cosine, constant, '
        "constant_with_warmup, polynomial. Did you mean 'cosine'?",
        "  run.json:7: warmup_ratio: found 1.5 (a number); allowed: a number at least 0 and at most 1.",
        "  run.json:8: unknown key 'qqq'. All keys stand in docs/config.md.",
        "  run.json:9: unknown key 'training'. The file is flat: write the keys under 'training' at the top level.",
        "  command line: found 'wat'; allowed: one config file (.json, .yaml, .yml), key=value, --key value, "
        "--key=value, "
        "and --key alone for true.",
        '  command line: max_steps: found "ten" (text); allowed: an integer at least -1.',
    ]


def test_a_single_error_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "max_steps: -2\n", "run.yaml")
    assert error_of(path) == "run.yaml:1: max_steps: found -2 (an integer); allowed: an integer at least -1."


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning_rat", "learning_rate"),
        ("lora_ranl", "lora_rank"),
        ("do_trian", "do_train"),
        ("per_device_batch_size", "per_device_eval_batch_size"),
        ("LoRA", "lora"),
        ("lora-rank", "lora_rank"),
        ("tensor_model_parallel_sise", "tensor_parallel_degree"),
        ("gradient_checkpoint", "recompute"),
    ],
)
def test_unknown_keys_get_the_nearest_right_one_by_its_present_name(tmp_path: Path, wrong: str, right: str) -> None:
    path = write(tmp_path, f"{wrong}: 1\n", "run.yaml")
    assert error_of(path) == f"run.yaml:1: unknown key {wrong!r}. Did you mean {right!r}?"


@pytest.mark.parametrize("prefix", ["do_trai", "learning_r", "resume"])
def test_a_beginning_of_a_name_is_not_the_name(prefix: str) -> None:
    assert f"unknown key {prefix!r}" in error_of(None, f"--{prefix}=1")


@pytest.mark.parametrize(
    "tokens",
    [
        ["lora_rank=16", "lora=true", "learning_rate=1e-4", "max_steps=-1"],
        ["--lora_rank", "16", "--lora", "--learning_rate", "1e-4", "--max_steps", "-1"],
        ["--lora_rank=16", "--lora=True", "--learning_rate=1e-4", "--max_steps=-1"],
        ["--lora", "true", "--lora_rank", "16", "learning_rate=0.0001", "--max_steps=-1"],
    ],
)
def test_overrides_in_every_spelling_win_over_the_file(tmp_path: Path, tokens: list[str]) -> None:
    path = write(tmp_path, '{"lora_rank": 4, "lora": false, "seed": 7}')
    instances, origins, notices = load_arguments(GROUPS, path, tokens)
    assert (instances["model"].lora_rank, instances["model"].lora) == (16, True)
    assert (instances["training"].learning_rate, instances["training"].max_steps) == (1e-4, -1)
    assert instances["training"].seed == 7
    assert str(origins["lora_rank"]) == "command line"
    assert str(origins["seed"]) == f"{path}:1"
    assert notices == []


def test_the_config_file_may_stand_among_the_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\n", "run.yaml")
    for tokens in ([str(path), "--lora"], ["--lora", str(path)], ["lora=true", str(path)]):
        instances, _, _ = load_arguments(GROUPS, None, tokens)
        assert (instances["training"].seed, instances["model"].lora) == (3, True)


def test_a_file_behind_a_text_key_is_its_value() -> None:
    instances, _, _ = load_arguments(GROUPS, None, ["--lora_path", "adapter.json"])
    assert instances["model"].lora_path == "adapter.json"


def test_lists_as_argparse_users_write_them() -> None:
    instances, _, _ = load_arguments(GROUPS, None, ["--report_to", "visualdl", "tensorboard", "--lora"])
    assert instances["training"].report_to == ["visualdl", "tensorboard"]
    instances, _, _ = load_arguments(GROUPS, None, ["--lora_target_modules", "q_proj", "v_proj", "--lora"])
    assert instances["model"].lora_target_modules == ["q_proj", "v_proj"]


def test_several_config_files_are_an_error(tmp_path: Path) -> None:
    one, two = write(tmp_path, "seed: 1\n", "a.yaml"), write(tmp_path, "seed: 2\n", "b.yaml")
    assert error_of(None, str(one), str(two)) == (
        f"command line: found 2 config files ({one}, {two}); a run takes one. Join them in one file, or give "
        f"single keys "
        "as key=value."
    )
    assert "found 2 config files" in error_of(one, str(two))


def test_a_word_behind_a_flag_is_meant_as_its_value() -> None:
    assert error_of(None, "--lora", "yes") == 'command line: lora: found "yes" (text); allowed: true or false.'
    assert load_arguments(GROUPS, None, ["--lora", "0", "--seed", "1"])[0]["model"].lora is False
    for rest in (["seed=1"], ["--seed", "1"], []):
        assert load_arguments(GROUPS, None, ["--lora", *rest])[0]["model"].lora is True


def test_an_unknown_flag_is_an_unknown_key() -> None:
    assert error_of(None, "--verbose") == "command line: unknown key 'verbose'. All keys stand in docs/config.md."
    assert "unknown key 'verbose'" in error_of(None, "--verbose", "--lora")


def test_a_key_without_its_value_is_an_error() -> None:
    assert error_of(None, "--lora_rank") == "command line: --lora_rank needs a value behind it."
    assert error_of(None, "--lora_rank", "--lora") == "command line: --lora_rank needs a value behind it."


def test_a_repeated_override_is_said_and_the_last_one_counts() -> None:
    instances, _, notices = load_arguments(GROUPS, None, ["seed=1", "--seed", "2"])
    assert instances["training"].seed == 2
    assert notices == ["command line: seed is given more than once; the last one counts: 2 (an integer)."]


def test_an_old_name_gives_one_notice_and_the_same_value(tmp_path: Path) -> None:
    path = write(tmp_path, '{\n"sharding_degree": 1}')
    instances, origins, notices = load_arguments(GROUPS, path)
    assert instances["training"].sharding_parallel_degree == 1
    assert notices == [f"{path}:2: sharding_degree: the name here is sharding_parallel_degree."]
    assert str(origins["sharding_parallel_degree"]) == f"{path}:2 (written as sharding_degree)"


def test_an_old_name_on_the_command_line_is_read_by_the_type_of_the_new_one() -> None:
    instances, _, _ = load_arguments(GROUPS, None, ["--gradient_checkpointing", "--use_cpu", "true"])
    assert (instances["training"].recompute, instances["training"].no_cuda) == (True, True)


def test_old_keys_without_a_type_of_ours_are_read_as_yaml_on_the_command_line() -> None:
    tokens = ["random_shuffle=true", "--beta", "0.1", "stage=SFT", "--recompute_method=uniform", "global_batch_size=-1"]
    run = load_run_config(None, ["model_name_or_path=m", "output_dir=o", "dataset_name_or_path=d", *tokens])
    assert run.training.recompute is True
    assert [notice.split(": ")[1] for notice in run.notices] == [
        "random_shuffle",
        "beta",
        "stage",
        "recompute_method",
        "global_batch_size",
    ]


def test_old_and_new_name_with_different_values_contradict(tmp_path: Path) -> None:
    path = write(tmp_path, '{"sharding_degree": 1,\n"sharding_parallel_degree": -1}')
    assert error_of(path) == (
        "run.json:2: sharding_parallel_degree: -1 (an integer) contradicts sharding_degree: 1 (an integer) "
        "(run.json:1); "
        "both set sharding_parallel_degree. Keep one of them."
    )


def test_old_and_new_name_with_the_same_value_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, '{"sharding_degree": 1,\n"sharding_parallel_degree": 1}')
    assert load_arguments(GROUPS, path)[0]["training"].sharding_parallel_degree == 1


def test_a_wrong_value_of_the_file_is_reported_although_the_command_line_replaces_it(tmp_path: Path) -> None:
    path = write(tmp_path, '{"lora_rank": "8"}')
    assert error_of(path, "lora_rank=4") == 'run.json:1: lora_rank: found "8" (text); allowed: an integer at least 1.'


def test_the_command_line_may_turn_off_what_is_not_built_yet(tmp_path: Path) -> None:
    path = write(tmp_path, '{"sep_parallel_degree": 4}')
    assert load_arguments(GROUPS, path, ["sep_parallel_degree=1"])[0]["training"].sep_parallel_degree == 1


def test_the_command_line_may_overrule_an_old_name_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '{"gradient_checkpointing": false}')
    assert load_arguments(GROUPS, path, ["recompute=true"])[0]["training"].recompute is True


def test_a_key_without_effect_says_why(tmp_path: Path) -> None:
    path = write(tmp_path, "eval_accumulation_steps: 16\npast_index: -1\n", "run.yaml")
    _, _, notices = load_arguments(GROUPS, path)
    assert notices == [
        f"{path}:1: eval_accumulation_steps has no effect: evaluation keeps sums, never the predictions, so there is "
        "nothing to move."
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "sep_parallel_degree: 4",
            "sep_parallel_degree: found 4 (an integer); sep and context parallelism is not built yet in this version. "
            "Remove the key or set it to 1.",
        ),
        (
            "pissa: true",
            "pissa: found true (a boolean); PiSSA is not built yet in this version. Remove the key or set it to false.",
        ),
        (
            "vera: true",
            "vera: found true (a boolean); VeRA is not built yet in this version. Remove the key or set it to false.",
        ),
    ],
)
def test_what_is_not_built_yet_is_refused(tmp_path: Path, line: str, message: str) -> None:
    assert error_of(write(tmp_path, line + "\n", "run.yaml")) == f"run.yaml:1: {message}"


@pytest.mark.parametrize(
    "line", ["sep_parallel_degree: 1", "sep_parallel_degree: -1", "vera: false", "sep_parallel_degree: 0"]
)
def test_what_is_not_built_yet_may_be_off(tmp_path: Path, line: str) -> None:
    load_arguments(GROUPS, write(tmp_path, line + "\n", "run.yaml"))


def test_two_groups_with_the_same_key_are_a_fault_of_the_program() -> None:
    with pytest.raises(TypeError, match="'model_name_or_path' is declared in two groups"):
        load_arguments({"a": ModelConfig, "b": ModelConfig})


def test_wrong_values_do_not_cause_errors_of_rules_that_need_them(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: x\noutput_dirr: out\ndataset_name_or_path: 3\n", "run.yaml")
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines()[1:] == [
        "  run.yaml:2: unknown key 'output_dirr'. Did you mean 'output_dir'?",
        "  run.yaml:3: dataset_name_or_path: found 3 (an integer); allowed: text or null.",
    ]


def test_notices_come_in_the_order_of_the_file() -> None:
    notices = ["a b.json:10: x", "command line: y", "a b.json:9: z", "command line: y"]
    assert in_order_of_lines(notices) == ["a b.json:9: z", "a b.json:10: x", "command line: y"]
