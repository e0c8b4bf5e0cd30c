"""What a rehearsal is made of: the layout stays, sizes shrink, both configs load, and what differs is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlesft.config import load_run_config
from paddlesft.config.resolve import RunConfig
from paddlesft.errors import ConfigError, UserError
from paddlesft.models.families import FAMILIES, family_named
from paddlesft.parallel.layout import AXES
from paddlesft.training.rehearsal import Rehearsal, find_tokenizer, plan_rehearsal, write_rehearsal
from paddlesft.training.rehearsal_runs import Compared, compare, compare_resumed, gradient_norms, judge, last_error
from tests.models.test_shrink import PUBLISHED, published

LLAMA = {**published(family_named("llama")), "num_attention_heads": 32, "num_key_value_heads": 32,
         "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}  # fmt: skip
KEYS = ["model_name_or_path=org/llama", "dataset_name_or_path=./nowhere", "output_dir=out", "bf16=true",
        "per_device_train_batch_size=4", "gradient_accumulation_steps=32"]  # fmt: skip


def production(*keys: str) -> RunConfig:
    return load_run_config(None, [*KEYS, *keys])


def planned(*keys: str, world_size: int | None = None, **options: Any) -> Rehearsal:
    return plan_rehearsal(production(*keys), world_size, LLAMA, family_named("llama"), **options)


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_keeps_its_axes(name: str, tmp_path: Path) -> None:
    family = family_named(name)
    assert name in PUBLISHED
    keys = ["sharding=stage1", "sharding_parallel_degree=2"]
    tensor = min(4, family.plan(published(family)).kv_heads)
    keys += [f"tensor_parallel_degree={tensor}"] + (["pipeline_parallel_degree=4"] if family.pipe_class else [])
    tokenizer = tmp_path if family.one_reply_per_row else None
    world = 2 * tensor * (4 if family.pipe_class else 1)
    most = 8 if family.pipe_class else 4
    plan = plan_rehearsal(production(*keys), world, published(family), family, tokenizer, most_processes=most)
    assert (plan.real.world_size, plan.small.world_size) == (world, most)
    for axis in AXES:
        assert (plan.small.degree(axis) > 1) == (plan.real.degree(axis) > 1)
    assert (plan.small.stage, plan.small.order) == (1, plan.real.order)


def test_the_rehearsal_says_what_it_does_not_rehearse() -> None:
    plan = planned(
        "tensor_parallel_degree=8", "sharding=stage2 offload", "bf16=false", "fp16=true", "fp16_opt_level=O2",
        "use_flash_attention=true", "lora=true", "lora_dropout=0.1", "load_best_model_at_end=true",
        "evaluation_strategy=steps", "save_strategy=steps",
        "sequence_parallel=true", world_size=32,
    )  # fmt: skip
    assert str(plan.small) == "tensor_parallel_degree 4, sequence_parallel, sharding stage2, sharding_parallel_degree 2"
    assert plan.shrunk[:2] == ["sharding_parallel_degree: 4 -> 2", "tensor_parallel_degree: 8 -> 4"]
    assert plan.shrunk[2].startswith("model: layers 32 -> 2, hidden size 4096 -> ")
    assert plan.shrunk[2].endswith("random weights")
    assert "per_device_train_batch_size: 4 -> 2" in plan.shrunk
    assert "gradient_accumulation_steps: 32 -> 4" in plan.shrunk
    assert plan.changed[0] == "rows of random token ids: the tokenizer is not on this machine"
    for text in ("flash attention", "offloading to the host", "dropout (each rank draws masks of its own)", "memory",
                 "speed", "NCCL", "fused kernels", "the rounding of half precision"):  # fmt: skip
        assert plan.not_rehearsed.count(text) == 1
    assert plan.run_config.training.sharding == "stage2"


def test_nothing_of_the_production_config_is_changed() -> None:
    run = production("tensor_parallel_degree=2")
    before = run.flat()
    plan_rehearsal(run, None, LLAMA, family_named("llama"))
    assert run.flat() == before


@pytest.mark.parametrize(
    ("keys", "processes"),
    [
        (["tensor_parallel_degree=2", "pipeline_parallel_degree=2"], 4),
        (["sharding=stage3"], 2),
        (["sharding=stage1", "sharding_parallel_degree=4", "tensor_parallel_degree=2"], 8),
    ],
)
def test_the_fewest_processes_are_taken_where_none_are_named(keys: list[str], processes: int) -> None:
    assert planned(*keys).real.world_size == processes


def test_nothing_divided_is_nothing_to_rehearse() -> None:
    with pytest.raises(UserError) as caught:
        planned()
    assert str(caught.value) == (
        "There is nothing to rehearse: the config divides nothing, and the run has one process. Give the number of "
        "processes of the run: --world_size N."
    )


def test_an_impossible_layout_of_the_real_model_is_refused_with_all_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        planned("tensor_parallel_degree=3", "pipeline_parallel_degree=2", "sharding=stage2", world_size=12)
    text = str(caught.value)
    assert "problems in the parallel layout for 12 processes:" in text
    assert "which does not divide the model's 32 attention heads" in text and "stage2" in text
    assert "Nearest layouts of 12 processes that would work:" in text


def test_a_family_that_needs_its_own_tokenizer_asks_for_it() -> None:
    with pytest.raises(UserError) as caught:
        plan_rehearsal(production("tensor_parallel_degree=2"), 2, published(family_named("glm")), family_named("glm"))
    assert str(caught.value) == (
        "Models of family glm find the place of a reply by tokens of their own tokenizer, which is not on this "
        "machine. Copy its files here and name the directory: tokenizer_name_or_path=DIR."
    )


def test_both_configs_load_and_have_one_global_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(
        "tensor_parallel_degree=2", "pipeline_parallel_degree=2", "sharding=stage1", "recompute=true",
        "no_recompute_layers=[1,30]", "packing=true", "amp_master_grad=true", "fp16_opt_level=O2",
        "per_device_train_batch_size=1", "num_train_epochs=3", "max_grad_norm=0.3", world_size=8,
    )  # fmt: skip
    files = write_rehearsal(plan, tmp_path)
    batches = {}
    for name, processes in (("one", 1), ("ranks", 8)):
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(processes))
        run = load_run_config(files[name])
        training = run.training
        assert not run.notices, run.notices
        batches[name] = training.gradient_accumulation_steps * training.per_device_train_batch_size
        assert (training.max_steps, training.eval_steps, training.device, training.bf16) == (6, 3, "cpu", False)
        assert (training.max_grad_norm, training.no_recompute_layers, run.data.packing) == (0.3, [1], True)
    assert batches["one"] == 2 * batches["ranks"] == plan.small.global_batch
    one, ranks = (json.loads(files[name].read_text(encoding="utf-8")) for name in ("one", "ranks"))
    assert (ranks["tensor_parallel_degree"], ranks["pipeline_parallel_degree"], ranks["sharding"]) == (2, 2, "stage1")
    assert ranks["save_steps"] == 3 and one["save_strategy"] == "no"
    resumed = load_run_config(files["resumed"]).training
    assert resumed.resume_from_checkpoint == f"{tmp_path}/run-ranks/checkpoint-3"
    assert resumed.output_dir == f"{tmp_path}/run-resumed"
    assert one.get("sharding", "") == "" and one.get("tensor_parallel_degree", -1) == -1


def test_prefixes_divide_as_they_have_to() -> None:
    plan = planned(
        "prefix_tuning=true", "num_prefix_tokens=128", "tensor_parallel_degree=4", "prefix_projection=true",
        "prefix_projection_hidden_size=512",
    )  # fmt: skip
    assert plan.run_config.model.num_prefix_tokens == 8
    assert plan.run_config.model.prefix_projection_hidden_size % 4 == 0
    assert "num_prefix_tokens: 128 -> 8" in plan.shrunk


def test_the_users_rows_are_used_where_tokenizer_and_data_are_here(tiny_llama: Path, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"src": f"question {i}", "tgt": f"answer {i}"}) for i in range(500))
    (tmp_path / "train.json").write_text(rows, encoding="utf-8")
    plan = planned("tensor_parallel_degree=2", f"dataset_name_or_path={tmp_path}", tokenizer=tiny_llama)
    data = plan.run_config.data
    assert plan.own_data
    assert (data.dataset_name_or_path, data.max_train_samples, data.eval_split_ratio) == (str(tmp_path), 64, 0.2)
    assert "data: the first 64 rows, cut to 128 tokens" in plan.shrunk
    assert plan.family.plan(plan.model_config).vocab == 32000  # every id of the tokenizer has its row
    plan = planned("tensor_parallel_degree=2", tokenizer=tiny_llama)
    assert not plan.own_data
    assert plan.changed[0] == "rows of random words: the data are not on this machine"


def test_a_tokenizer_is_looked_for_in_order(tiny_llama: Path, tmp_path: Path) -> None:
    assert find_tokenizer(None, "org/name", tmp_path) is None
    assert find_tokenizer("org/name", tmp_path, tiny_llama) == tiny_llama


def test_random_rows_reach_the_whole_vocabulary(tmp_path: Path) -> None:
    from paddlesft.data.dataset import build_dataset
    from paddlesft.training.run_renderer import read_renderer

    plan = planned("tensor_parallel_degree=2", "packing=true")
    run = load_run_config(write_rehearsal(plan, tmp_path)["one"])
    said: list[str] = []
    dataset, _ = build_dataset(run.data, read_renderer(run, said.append).renderer, "train")
    ids = {index for i in range(len(dataset)) for index in dataset[i]["input_ids"]}
    assert max(ids) == 255 and len(ids) > 200 and 3 not in ids  # <unk> would be a word that the tokenizer lacks
    assert all(max(dataset[i]["labels"]) >= 0 for i in range(len(dataset)))
    assert not said


# ---- comparing ----


def logged(directory: Path, losses: dict[int, float], evaluation: float, factors: list[float] | None) -> Path:
    directory.mkdir()
    records = [{"kind": "train", "step": step, "loss": loss} for step, loss in losses.items()]
    records.append({"kind": "eval", "step": 2, "eval_loss": evaluation})
    (directory / "train_log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    if factors is not None:
        (directory / "clipping.json").write_text(json.dumps(factors), encoding="utf-8")
    return directory


@pytest.fixture()
def rows(tmp_path: Path) -> Callable[..., list[Compared]]:
    def make(losses: dict[int, float], evaluation: float = 3.0, factors: list[float] | None = None) -> list[Compared]:
        one = logged(tmp_path / "one", {1: 4.0, 2: 3.5}, 3.0, [0.5, 1.0])
        return compare(one, logged(tmp_path / "ranks", losses, evaluation, factors or [0.5, 1.0]), 1.0)

    return make


def test_equal_runs_agree(rows: Callable[..., list[Compared]]) -> None:
    found = rows({1: 4.00001, 2: 3.5})
    assert [(row.step, row.what) for row in found] == [
        (1, "train loss"), (2, "train loss"), (1, "gradient norm"), (2, "evaluation loss")
    ]  # fmt: skip
    assert (found[2].one, found[2].ranks) == (2.0, 2.0)  # a step without clipping has no norm to compare
    assert judge(found, 1e-4) == ""
    assert judge(found, 1e-6).startswith("train loss of step 1 differs by 1.0e-05, more than 1e-06 (largest")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"losses": {1: 4.0, 2: 3.6}}, "train loss of step 2 differs by 1.0e-01, more than 0.0001 (largest"),
        ({"losses": {1: 4.0}}, "train loss of step 2: found nan in the log of the ranks"),
        ({"losses": {1: 4.0, 2: math.inf}}, "train loss of step 2: found inf in the log of the ranks"),
        ({"losses": {1: 4.0, 2: 3.5}, "evaluation": 3.1}, "evaluation loss of step 2 differs by 1.0e-01"),
        ({"losses": {1: 4.0, 2: 3.5}, "factors": [0.25, 1.0]}, "gradient norm of step 1 differs by 5.0e-01"),
        ({"losses": {1: 4.0, 2: 3.5}, "factors": [0.5, 0.9]}, "gradient norm of step 2 differs by 1.0e-01"),
    ],
)  # fmt: skip
def test_what_differs_is_named(changes: dict[str, Any], reason: str, rows: Callable[..., list[Compared]]) -> None:
    assert judge(rows(**changes), 1e-4).startswith(reason)


def test_runs_that_logged_nothing_do_not_agree(tmp_path: Path) -> None:
    assert judge(compare(tmp_path, tmp_path, 1.0), 1e-4) == "no loss was logged"


def test_a_resumed_run_is_compared_from_its_checkpoint_on(tmp_path: Path) -> None:
    one = logged(tmp_path / "one", {1: 4.0, 2: 3.5}, 3.0, None)
    found = compare_resumed(one, logged(tmp_path / "resumed", {2: 3.75}, 3.0, None))
    assert [(row.step, row.what) for row in found] == [(2, "train loss, resumed"), (2, "evaluation loss, resumed")]
    assert judge(found[:1] + compare(one, one, 1.0), 1e-4).startswith(
        "train loss, resumed of step 2 differs by 2.5e-01"
    )
    nothing = compare(one, one, 1.0) + compare_resumed(one, tmp_path)
    assert judge(nothing, 1e-4) == "train loss, resumed of step 0: found nan in the log of one process"


def test_norms_are_not_known_without_clipping(tmp_path: Path) -> None:
    logged(tmp_path / "a", {}, 1.0, [0.5, math.nan, 1.0])
    assert gradient_norms(tmp_path / "a", 0.3) == {1: 0.6, 3: 0.3}
    assert gradient_norms(tmp_path / "a", 0.0) == gradient_norms(tmp_path / "b", 1.0) == {}


def test_the_last_error_of_a_log_is_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading\nTraceback (most recent call last):\n  File ...\nKeyError: 'x'\n", encoding="utf-8")
    assert last_error(log) == "KeyError: 'x'"
    log.write_text("loading\npaddlesft train: 2 problems:\n  a\n  b\n", encoding="utf-8")
    assert last_error(log) == "2 problems:\n  a\n  b"
