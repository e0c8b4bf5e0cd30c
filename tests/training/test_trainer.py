"""The training loop: what a step is, that runs repeat, what happens when the loss breaks."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlesft.errors import UserError
from paddlesft.training.checkpoint_saving import complete_checkpoints
from paddlesft.training.loss import supervised_loss
from paddlesft.training.run_log import read_log
from tests.training.small_runs import Recorder, batch_of, losses, small_dataset, small_model, small_run

BATCHES = ["per_device_train_batch_size=2", "gradient_accumulation_steps=2"]


def weights(trainer) -> dict[str, np.ndarray]:
    return {name: p.numpy() for name, p in trainer.model.named_parameters() if not p.stop_gradient}


@pytest.mark.parametrize("method", ["lora=true", "prefix_tuning=true", "lora=false"])
def test_8_micro_batches_of_1_row_are_1_of_8(tmp_path: Path, method: str) -> None:
    keys = [method, "num_train_epochs=2", *(["num_prefix_tokens=4"] if "prefix" in method else [])]
    split = small_run(tmp_path / "split", *keys, "per_device_train_batch_size=1", "gradient_accumulation_steps=8")
    whole = small_run(tmp_path / "whole", *keys, "per_device_train_batch_size=8", "gradient_accumulation_steps=1")
    assert len(losses(tmp_path / "split")) == 6  # 21 rows: 8, 8 and 5, twice
    for (step, a), (other, b) in zip(losses(tmp_path / "split"), losses(tmp_path / "whole")):
        assert step == other and a == pytest.approx(b, abs=3e-6)
    for name, value in weights(split).items():
        np.testing.assert_allclose(value, weights(whole)[name], atol=2e-4, err_msg=name)


def test_a_step_is_the_mean_over_trained_tokens_whatever_row_they_are_in(tmp_path: Path) -> None:
    small_run(tmp_path, "per_device_train_batch_size=3", "gradient_accumulation_steps=7", "num_train_epochs=1")
    everything = supervised_loss(small_model(), batch_of(small_dataset(21)))
    expected = float(everything.loss_sum) / everything.trained_tokens
    assert losses(tmp_path)[0][1] == pytest.approx(expected, rel=1e-6)


def test_an_epochs_left_over_rows_make_a_step_of_their_own(tmp_path: Path) -> None:
    """PaddleNLP carries left-over micro-batches into the next epoch; here 21 rows in steps of 4 are 6 steps."""
    trainer = small_run(tmp_path, *BATCHES, "num_train_epochs=2")
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))
    records = read_log(tmp_path)
    total = sum(small_dataset(21).num_trained_tokens(i) for i in range(21))
    assert records[5]["trained_tokens"] == total and records[-1]["trained_tokens"] == 2 * total
    assert records[5]["epoch"] == 1.0 and trainer.state.epoch == 2.0


@pytest.mark.parametrize(
    "keys",
    [
        ["lora=true", "lora_dropout=0.3"],
        ["prefix_tuning=true", "num_prefix_tokens=3", "prefix_projection=true"],
        ["lora=false", "lr_scheduler_type=cosine", "warmup_ratio=0.3", "weight_decay=0.1", "max_grad_norm=0.1"],
        ["lora=true", "length_grouping=true"],
    ],
)
def test_reruns_are_bit_identical(tmp_path: Path, keys: list[str]) -> None:
    runs = [small_run(tmp_path / name, *keys, *BATCHES, "num_train_epochs=2") for name in "ab"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    first, second = map(weights, runs)
    assert all((first[name] == second[name]).all() for name in first)
    other = small_run(tmp_path / "c", *keys, *BATCHES, "num_train_epochs=2", "seed=7")
    assert any((weights(other)[name] != first[name]).any() for name in first)


@pytest.mark.parametrize("keys", [["lora=true", "lora_dropout=0.3"], ["lora=false", "warmup_steps=4"]])
@pytest.mark.parametrize("stop", [6, 8], ids=["at an epoch's end", "in the middle of an epoch"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, keys: list[str], stop: int) -> None:
    keys = [*keys, *BATCHES, "num_train_epochs=3", "save_strategy=steps", f"save_steps={stop}", "logging_steps=5"]
    whole = small_run(tmp_path / "whole", *keys)
    small_run(tmp_path / "parts", *keys)
    checkpoint = tmp_path / "parts" / f"checkpoint-{stop}"
    resumed = small_run(tmp_path / "parts", *keys, resume=checkpoint)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    first, second = weights(whole), weights(resumed)
    assert all((first[name] == second[name]).all() for name in first)
    assert resumed.meter.mean_loss == pytest.approx(whole.meter.mean_loss, rel=1e-12)


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recompute_changes_memory_not_results(tmp_path: Path, granularity: str) -> None:
    plain = small_run(tmp_path / "plain", *BATCHES, "num_train_epochs=1")
    again = small_run(tmp_path / "again", *BATCHES, "num_train_epochs=1", "recompute=true",
                      f"recompute_granularity={granularity}")  # fmt: skip
    assert plain.args.recompute is False and again.args.recompute is True
    for (_, a), (_, b) in zip(losses(tmp_path / "plain"), losses(tmp_path / "again")):
        assert a == pytest.approx(b, abs=1e-6)


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    trainer = small_run(tmp_path, *BATCHES, "max_steps=1", "weight_decay=0.5")
    decays = trainer.optimizer._apply_decay_param_fun
    by_name = {name: decays(p.name) for name, p in trainer.model.named_parameters()}
    assert by_name["llama.layers.0.mlp.up_proj.weight"] and by_name["lm_head.weight"]
    assert not any(decayed for name, decayed in by_name.items() if "norm" in name or "bias" in name)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.9045, 0.6545, 0.3455, 0.0955]),
    ],
)
def test_learning_rates_in_the_log_are_those_the_steps_used(tmp_path: Path, scheduler: str, expected) -> None:
    keys = [
        "max_steps=7",
        "warmup_steps=2",
        f"lr_scheduler_type={scheduler}",
        "learning_rate=1.0",
        "max_grad_norm=1e-9",
    ]
    small_run(tmp_path, *keys, "lora=true")
    found = [record["learning_rate"] for record in read_log(tmp_path)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    trainer = small_run(tmp_path, "max_steps=1", "max_grad_norm=0.01")
    assert trainer.optimizer._grad_clip.clip_norm == pytest.approx(0.01)
    assert small_run(tmp_path / "b", "max_steps=1", "max_grad_norm=0").optimizer._grad_clip is None


def broken_model(steps: int):
    """A model whose loss is not a number in its first ``steps`` steps."""
    model = small_model()
    calls = {"left": steps}

    def poison(layer, inputs, output):
        calls["left"] -= 1
        return output * float("nan") if calls["left"] >= 0 else output

    model.llama.norm.register_forward_post_hook(poison)
    return model


def test_single_bad_steps_are_skipped_and_said(tmp_path: Path) -> None:
    recorder = Recorder()
    before = {name: p.numpy() for name, p in broken_model(0).named_parameters()}
    trainer = small_run(tmp_path / "a", "max_steps=2", model=broken_model(2), observer=recorder)
    assert [text[:22] for text in recorder.of("warning")] == ["step 1: the loss is na", "step 2: the loss is na"]
    assert all((value == before[name]).all() for name, value in weights(trainer).items())
    trainer = small_run(tmp_path / "b", "max_steps=4", model=broken_model(2))
    assert any((value != before[name]).any() for name, value in weights(trainer).items())
    assert all(np.isfinite(value).all() for value in weights(trainer).values())


def test_a_run_that_has_diverged_stops_with_an_explanation(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        small_run(tmp_path, "max_steps=10", model=broken_model(99))
    text = str(error.value)
    assert "the loss was nan in 5 steps in a row (up to step 5)" in text and "Lower learning_rate first" in text


def test_the_best_checkpoint_is_kept_and_is_the_result(tmp_path: Path) -> None:
    keys = ["evaluation_strategy=steps", "eval_steps=2", "save_strategy=steps", "save_steps=2", "save_total_limit=1",
            "load_best_model_at_end=true", "learning_rate=3e-2", "max_steps=12", *BATCHES]  # fmt: skip
    for metric, best in (("loss", min), ("accuracy", max), ("perplexity", min)):
        out = tmp_path / metric
        trainer = small_run(out, *keys, f"metric_for_best_model={metric}")
        scores = {r["step"]: r[f"eval_{metric}"] for r in read_log(out) if r["kind"] == "eval"}
        assert trainer.state.best_metric == best(scores.values())
        kept = [path.name for path in complete_checkpoints(out)]
        winner = next(step for step, score in scores.items() if score == trainer.state.best_metric)
        assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{winner}" in kept
        assert "checkpoint-12" in kept and len(kept) <= 2
        assert trainer.evaluate()[f"eval_{metric}"] == trainer.state.best_metric


def test_an_unknown_best_metric_names_the_known_ones(tmp_path: Path) -> None:
    trainer = small_run(tmp_path, "max_steps=1", "evaluation_strategy=steps", "eval_steps=9")
    trainer.args.metric_for_best_model = "f1"
    with pytest.raises(UserError, match=r"'f1' is not among this run's metrics. Allowed: accuracy, loss, perplexity"):
        trainer._note_if_best(tmp_path / "checkpoint-1", trainer.evaluate())


def test_checkpoints_are_numbered_limited_and_hold_the_state(tmp_path: Path) -> None:
    small_run(tmp_path, "lora=true", "max_steps=8", "save_strategy=steps", "save_steps=2", "save_total_limit=2")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    files = json.loads((tmp_path / "checkpoint-8" / "complete.json").read_text())["files"]
    assert {"lora_model_state.pdparams", "trainer_state.json", "training_state/optimizer.safetensors"} <= set(files)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and len(state["log_history"]) == 8


def test_the_last_steps_are_logged_even_between_two_lines(tmp_path: Path) -> None:
    small_run(tmp_path / "a", "max_steps=7", "logging_steps=3")
    assert [step for step, _ in losses(tmp_path / "a")] == [3, 6, 7]
    small_run(tmp_path / "b", "max_steps=7", "logging_strategy=no")
    assert losses(tmp_path / "b") == []


def test_metrics_reach_visualdl_when_asked(tmp_path: Path) -> None:
    small_run(tmp_path / "run", "max_steps=2", "report_to=[visualdl]", f"logging_dir={tmp_path / 'vdl'}")
    from visualdl import LogReader

    (log,) = (tmp_path / "vdl").iterdir()
    scalars = LogReader(file_path=str(log)).get_data("scalar", "train/loss")
    assert [point.value for point in scalars] == pytest.approx([loss for _, loss in losses(tmp_path / "run")], rel=1e-5)


def test_only_the_adapter_is_trained(tmp_path: Path) -> None:
    before = {name: p.numpy() for name, p in small_model().named_parameters()}
    trainer = small_run(tmp_path, "lora=true", "max_steps=3")
    after = {name: p.numpy() for name, p in trainer.model.model.named_parameters()}
    assert all((after[name] == value).all() for name, value in before.items())
    assert any(np.abs(value).max() > 0 for name, value in after.items() if "lora_B" in name)


def test_lora_plus_gives_b_a_larger_learning_rate(tmp_path: Path) -> None:
    one = small_run(tmp_path / "a", "lora=true", "max_steps=1", "max_grad_norm=0")
    four = small_run(tmp_path / "b", "lora=true", "max_steps=1", "max_grad_norm=0", "lora_plus_scale=4.0")
    name = next(name for name in weights(one) if "lora_B" in name)
    np.testing.assert_allclose(weights(four)[name], 4 * weights(one)[name], rtol=1e-4, atol=1e-7)
    name = name.replace("lora_B", "lora_A")
    np.testing.assert_array_equal(weights(four)[name], weights(one)[name])


def test_quick_lora_is_the_same_training(tmp_path: Path) -> None:
    small_run(tmp_path / "a", "lora=true", "num_train_epochs=1", *BATCHES)
    small_run(tmp_path / "b", "lora=true", "num_train_epochs=1", *BATCHES, "use_quick_lora=true")
    for (_, a), (_, b) in zip(losses(tmp_path / "a"), losses(tmp_path / "b")):
        assert a == pytest.approx(b, abs=1e-5)


def test_the_device_is_the_cpu_here() -> None:
    assert paddle.get_device() == "cpu"
