"""``paddlesft train`` as a user meets it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddlesft.cli.main import main
from paddlesft.cli.train_display import TrainDisplay, next_commands
from paddlesft.cli.train_launch import LaunchOptions, take_launch_options
from paddlesft.errors import ConfigError
from paddlesft.parallel import launch as launch_room
from paddlesft.parallel import visible_gpus
from paddlesft.training.checkpoint_saving import complete_checkpoints
from tests.tiny_quantized import write_quantized

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file beside its data, as a user would write it."""
    path = tmp_path_factory.mktemp("run")
    for name, count in (("train", 12), ("dev", 4)):
        rows = [{"src": f"What is {i} plus one?", "tgt": f"It is {i + 1}."} for i in range(count)]
        (path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"model_name_or_path: {tiny_llama}", f"dataset_name_or_path: {path}", "lora: true", "max_length: 64",
             "src_length: 32", "per_device_train_batch_size: 4", "learning_rate: 1e-2", "logging_steps: 1",
             "evaluation_strategy: epoch", "save_strategy: epoch", "num_train_epochs: 2"]  # fmt: skip
    (path / "lora.yaml").write_text("\n".join(lines) + "\n")
    return path / "lora.yaml"


def test_a_run_shows_what_happens_and_names_what_comes_next(run_cli, run_here, config: Path, tmp_path: Path) -> None:
    done = run_cli("train", config, f"output_dir={tmp_path / 'out'}", "learning_rate=5e-3")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    for text in (
        "learning_rate", "command line",  # the resolved config with origins
        "Train data", "12", "Eval data",  # the data
        "⟦It is 1.<|im_end|>⟧",  # what is trained
        "LoRA: 16,384 of", "6 steps on cpu",  # the plan
        "about 0:0",  # the estimate
        "step 6/6 100.0%  loss ", " tok/s (", " GB  epoch 2.00  ETA 0:00",  # complete lines
        "evaluation at step 6  eval_loss",
        f"paddlesft chat --lora_path {tmp_path / 'out'}", "paddlesft merge-lora --lora_path",
    ):  # fmt: skip
        assert text in out, text
    assert out.count("step ") >= 6 and "Traceback" not in done.stderr and "\r" not in done.stderr
    assert {"lora_config.json", "paddlesft.json", "run_config.yaml", "train_log.jsonl", "loss.png", "all_results.json",
            "trainer_state.json"} <= {path.name for path in (tmp_path / "out").iterdir()}  # fmt: skip

    again = run_here("train", config, f"output_dir={tmp_path / 'out'}", "learning_rate=1e-4")
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert "learning_rate: 0.005 in the checkpoint, 0.0001 now" in again.stderr
    assert "allow_resume_differences: true" in again.stderr
    assert "changes the result" in again.stdout


def test_a_stopped_run_goes_on_and_says_so(run_here, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_here("train", config, f"output_dir={out}").returncode == 0
    newest = complete_checkpoints(out)[-1]
    (newest / "complete.json").unlink()
    done = run_here("train", config, f"output_dir={out}")
    assert done.returncode == 0, done.stderr
    assert "passed over checkpoint-6: it has no complete.json" in done.stdout
    assert f"going on from {out / 'checkpoint-3'} (the newest complete checkpoint of output_dir)" in done.stdout
    assert "written by this very run; step 3 is done" in done.stdout and "step 4/6" in done.stdout
    assert "step 3/6" not in done.stdout


def test_the_launched_script_is_the_same(config: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "llm/finetune.py"), str(config), "--output_dir", str(tmp_path), "--max_steps", "1"],
        env={**os.environ, "PYTHONPATH": str(REPO)}, cwd=tmp_path.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout and (tmp_path / "lora_config.json").is_file()


def test_config_errors_come_all_at_once(run_cli, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("lerning_rate: 3\nlora: maybe\noutput_dir: x\n")
    done = run_cli("train", tmp_path / "bad.yaml")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "bad.yaml:1: unknown key 'lerning_rate'. Did you mean 'learning_rate'?" in done.stderr
    assert "bad.yaml:2: lora: found" in done.stderr


def test_a_benchmark_ends_with_the_lines_that_scripts_look_for(run_here, config: Path, tmp_path: Path) -> None:
    done = run_here("train", config, f"output_dir={tmp_path / 'a'}", "benchmark=true")
    assert done.returncode == 0, done.stderr
    speed = json.loads((tmp_path / "a" / "train_results.json").read_text())["train_tokens_per_second"]
    assert f"Effective_Tokens_per_second: {speed}\nBenchmark done." in done.stdout
    assert "evaluation at" not in done.stdout and "checkpoint " not in done.stdout


def test_errors_of_data_and_model_have_no_traceback(run_here, config: Path, tmp_path: Path) -> None:
    done = run_here("train", config, f"output_dir={tmp_path / 'a'}", f"dataset_name_or_path={tmp_path}/nowhere")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "nowhere" in done.stderr
    done = run_here("train", config, f"output_dir={tmp_path / 'b'}", "lora_target_modules=[q_porj]")
    assert done.returncode == 2 and "Did you mean 'q_proj'?" in done.stderr
    assert not (tmp_path / "b" / "lora_config.json").exists()


def test_help_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--lora_rank" in text and "Rank of the adapters." in text and "paddle.distributed.launch" in text
    assert main(["train"]) == 2
    assert "usage: paddlesft train" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, live in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with TrainDisplay() as display:
            display.step(3, 12, 1.5, 1234.0, 62.0)
            display.evaluating(2, 2)
        text = stream.getvalue()
        assert ("3/12  loss 1.5000  1,234 tok/s  ETA 1:02" in text and "evaluating 2/2" in text) is live
        assert text.endswith("\r\x1b[K") is live  # nothing of it stays behind


def test_disable_tqdm_leaves_the_live_line_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from paddlesft.config import load_run_config

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    keys = ["model_name_or_path=m", "output_dir=o", "dataset_name_or_path=d", "disable_tqdm=true"]
    with TrainDisplay() as display:
        display.resolved_config(load_run_config(None, keys))
        display.step(3, 12, 1.5, 1234.0, 62.0)
    assert "3/12" not in stream.getvalue()
    assert "disable_tqdm" in capsys.readouterr().out


def test_only_the_first_process_talks(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay(quiet=True) as display:
        display.message("x")
        display.step(12, 12, 1.5, 1.0, 0.0)
    assert capsys.readouterr() == ("", "")


def test_merging_is_asked_for_the_precision_of_a_quantized_base(tmp_path: Path) -> None:
    (tmp_path / "paddlesft.json").write_text('{"format": 1, "base_quantization": {"format": "nf4"}}', encoding="utf-8")
    assert next_commands("lora", tmp_path)[1].endswith("-merged --base_precision dequantized")


@pytest.mark.parametrize("kind", ["int8", None])
def test_merging_is_asked_for_the_precision_of_a_base_that_is_stored_quantized(
    kind: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    base = write_quantized(tmp_path / "base", tiny_llama, kind) if kind else tiny_llama
    (tmp_path / "paddlesft.json").write_text(json.dumps({"format": 1, "base": {"path": str(base)}}), encoding="utf-8")
    assert next_commands("lora", tmp_path)[1].endswith(" --base_precision dequantized" if kind else "-merged")


def test_the_next_commands_fit_the_method() -> None:
    assert next_commands("lora", Path("runs/a b"))[1] == (
        "paddlesft merge-lora --lora_path 'runs/a b' --merge_model_path 'runs/a b-merged'"
    )
    assert next_commands("prefix", Path("r"))[0] == "paddlesft chat --prefix_path r"
    assert next_commands("full", Path("r"))[0] == "paddlesft chat --model_name_or_path r"


# ---- several processes ----


def test_options_of_the_launch_are_taken_out_of_the_arguments() -> None:
    arguments = ["--nproc", "4", "a.yaml", "max_restarts=2", "--log_dir=logs", "--lora", "seed=3"]
    options, rest = take_launch_options(arguments)
    assert options == LaunchOptions(4, "logs", 2) and rest == ["a.yaml", "--lora", "seed=3"]
    assert take_launch_options(["a.yaml"]) == (LaunchOptions(), ["a.yaml"])
    assert take_launch_options(["--max-restarts", "1"])[0].max_restarts == 1
    with pytest.raises(ConfigError) as error:
        take_launch_options(["--nproc", "0", "--max_restarts=-1", "--log_dir"])
    assert str(error.value).splitlines() == [
        "command line: --nproc: found '0'; allowed: a whole number from 1.",
        "command line: --max_restarts: found '-1'; allowed: a whole number from 0.",
        "command line: --log_dir needs a directory behind it.",
    ]
    with pytest.raises(ConfigError) as error:
        take_launch_options(["a.yaml", "--nproc"])
    assert str(error.value).splitlines() == [
        "command line: --nproc: found nothing behind it; allowed: a whole number from 1.",
    ]


def test_errors_of_config_layout_and_machines_come_before_any_rank_starts(
    run_here, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_room, "launch", lambda *args, **options: pytest.fail("ranks were started"))
    out = f"output_dir={tmp_path / 'out'}"
    done = run_here("train", "--nproc", "2", config, out, "lerning_rate=3")
    assert done.returncode == 2 and done.stderr.count("Did you mean 'learning_rate'?") == 1
    done = run_here("train", "--nproc", "2", config, out, "tensor_parallel_degree=4")
    assert done.returncode == 2 and "does not divide the 2 processes of this run" in done.stderr
    done = run_here("train", "--nproc", "2", config)
    assert done.returncode == 2 and "output_dir" in done.stderr
    done = run_here("train", config, out, "tensor_parallel_degree=2")
    assert done.returncode == 2 and "but this run is one process" in done.stderr
    assert "paddlesft train --nproc 2 CONFIG" in done.stderr
    done = run_here("train", config, out, NNODES="2", RANK="0")
    assert done.returncode == 2 and "MASTER_ADDR is not set" in done.stderr and "MASTER_PORT is not set" in done.stderr
    assert not (tmp_path / "out").exists() and "PADDLE_TRAINERS_NUM" not in os.environ


def test_each_visible_gpu_gets_a_process(run_here, config: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def launch(command, ranks, log_dir, **options):
        calls.append((command[1:], ranks, log_dir, options["on_cpu"], options["nodes"]))
        return launch_room.Launched(0, log_dir)

    monkeypatch.setattr(launch_room, "launch", launch)
    monkeypatch.setattr(visible_gpus, "visible_gpus", lambda: 4)
    out = f"output_dir={tmp_path / 'out'}"
    done = run_here("train", config, out)
    assert done.returncode == 0, done.stderr
    assert calls == [(["-m", "paddlesft", "train", str(config), out], 4, tmp_path / "out" / "log", False, None)]
    assert done.stdout == f"4 processes; logs: {tmp_path / 'out' / 'log'}/workerlog.N\n"
    run_here("train", config, out, "--nproc=2", "device=cpu", f"--log_dir={tmp_path / 'logs'}")
    assert calls[1][1:4] == (2, tmp_path / "logs", True)
    run_here("train", config, out, NNODES="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    assert calls[2][1:3] == (4, tmp_path / "out" / "log" / "node-1") and calls[2][4].count == 2
    for name in ("--nproc", "--nproc_per_node"):
        done = run_here("train", config, out, name, "5")
    assert done.returncode == 2 and len(calls) == 3
    assert "--nproc: found 5; visible GPUs: 4; allowed: at most one process on each." in done.stderr


@pytest.mark.parametrize("options", [(), ("--nproc", "2")])
def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(run_here, config: Path, tmp_path: Path, options) -> None:
    done = run_here("train", config, f"output_dir={tmp_path / 'out'}", "device=gpu:0", *options)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "device: found 'gpu:0', but paddle sees no GPU here; allowed here: auto or cpu." in done.stderr


def test_a_rank_cannot_be_launched_again(run_cli, config: Path, tmp_path: Path) -> None:
    rank = {"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "0"}
    done = run_cli("train", config, f"output_dir={tmp_path}", "--nproc", "2", **rank)
    assert done.returncode == 2 and "paddle.distributed.launch has launched these" in done.stderr


@pytest.mark.slow
def test_an_error_that_all_ranks_find_is_shown_once(run_cli, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = [config, f"output_dir={out}", f"dataset_name_or_path={tmp_path}/nowhere", "device=cpu"]
    done = run_cli("train", "--nproc", "2", *keys, OMP_NUM_THREADS="1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("paddlesft train: dataset_name_or_path: ") and "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).count("nowhere does not exist") == 1
    assert "nowhere does not exist" in (out / "log" / "workerlog.1").read_text()
