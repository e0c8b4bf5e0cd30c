"""``paddlesft quantize`` as a user runs it, and ``paddlesft train`` with a config that quantizes."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_train import REPO
from tests.quantization.rows import quantization_keys, write_rows
from tests.tiny_models import write_tiny_llama


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_rows(path / "train.json", 12)
    write_rows(path / "dev.json", 4, start=50)
    return path


def test_help_and_no_arguments(run_here: Callable) -> None:
    done = run_here("quantize", "--help")
    assert done.returncode == 0
    for word in ("--quant_type", "--group_size", "--max_ppl_increase", "weight_only_int8", "do_gptq=true", "nf4"):
        assert word in done.stdout, word
    done = run_here("quantize")
    assert done.returncode == 2 and "paddlesft quantize --help lists every key." in done.stderr


def test_a_model_without_data(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    """Three arguments are enough: do_ptq is what the verb means."""
    done = run_here("quantize", "quant_type=WINT8", f"model_name_or_path={tiny_llama}", f"output_dir={tmp_path / 'o'}")
    assert done.returncode == 0, done.stderr
    for line in (
        "quantized to weight_only_int8 by rounding to nearest in ",
        "perplexity and accuracy: not measured, there is no data (eval_dataset_path names some)",
        "fixed prompts: logits differ by 0.",
        "quantized layers",
        "most memory held meanwhile: ",
        "largest errors of a layer's output:",
        f"Directory: {tmp_path / 'o'}",
        f"Next: paddlesft chat --model_name_or_path {tmp_path / 'o'}",
    ):
        assert line in done.stdout, (line, done.stdout)
    assert "layer 1/2" not in done.stdout  # nobody watches
    assert (tmp_path / "o" / "quant_report.json").is_file()


def test_the_gate(run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """4 bits cost a random model a little; whether they do is the report's to say."""
    keys = [*quantization_keys(tiny_llama, tmp_path / "o", data=data), "quant_type=wint4"]
    done = run_here("quantize", *keys, "max_ppl_increase=1000")
    assert done.returncode == 0, done.stderr
    grown = json.loads((tmp_path / "o" / "quant_report.json").read_text(encoding="utf-8"))["perplexity_increase"]
    assert "tokens of 4 held-out rows" in done.stdout and f"{grown:+.2%}" in done.stdout
    from paddlesft.quantization.report import QuantReport

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantReport, "perplexity_increase", 0.031)
        done = run_here("quantize", *keys, "max_ppl_increase=0.03", "overwrite_output_dir=true")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "FAILED: the perplexity has grown by 3.10%; max_ppl_increase allows 3.00%. The directory is there all the same."
    )
    assert (tmp_path / "o" / "model.safetensors").is_file()


def test_layers_with_raised_damping_are_shown(
    run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlesft.quantization import quantize_layer as module

    real = module.round_by_hessian

    def raised(weight: object, hessian: object, how: object, damping: float, where: str, scales: object) -> object:
        found = real(weight, hessian, how, damping, where, scales)
        return found._replace(damping=0.1) if "down_proj" in where else found

    keys = [*quantization_keys(tiny_llama, tmp_path / "o", data=data), "do_ptq=false", "do_gptq=true"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "round_by_hessian", raised)
        done = run_here("quantize", *keys)
    assert done.returncode == 0, done.stderr
    assert (
        "Note: GPTQ raised its damping for 2 layers, whose calibration inputs give a singular Hessian (most: "
        "llama.layers.0.mlp.down_proj, from 0.01 to 0.1). More and other calibration rows make it regular; "
        "quant_report.json names them all under damped."
    ) in done.stdout
    found = json.loads((tmp_path / "o" / "quant_report.json").read_text(encoding="utf-8"))["damped"]
    assert found == ["llama.layers.0.mlp.down_proj", "llama.layers.1.mlp.down_proj"]


def test_errors_are_messages(run_here: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    here = [f"model_name_or_path={tiny_llama}", f"output_dir={tmp_path / 'o'}", "dataset_name_or_path=x"]
    for arguments, message in (
        (["do_ptq=false", *here], "nothing to do: do_train, do_eval, do_predict, do_ptq, do_gptq and do_awq are all"),
        (["do_train=true", *here], "do_train is true, and this verb does not train. paddlesft train with the same"),
        ([*here, "--quant_type"], "command line: --quant_type needs a value behind it."),
        (["quant_typ=nf4", *here], "unknown key 'quant_typ'. Did you mean 'quant_type'?"),
        (["quant_type=fp8", *here], 'quant_type: found "fp8" (text); allowed: one of a8w8, llm.int8,'),
        (["--nproc", "2", *here], "command line: --nproc: paddlesft quantize runs in one process on one device."),
        (["tensor_parallel_degree=2", *here], "do_ptq runs in one process on one device; found tensor_parallel_degree"),
        (here, "dataset_name_or_path: found the name 'x', which is no file or directory here"),
    ):
        done = run_here("quantize", *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def write_config(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["ptq", "gptq"])
def test_upstream_files_run_with_nothing_but_their_paths_changed(
    kind: str, run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    from tests.config.upstream_keys import sample

    content = sample(f"llama/{kind}_argument.json") | {
        "model_name_or_path": str(tiny_llama), "dataset_name_or_path": str(data), "output_dir": str(tmp_path / "o"),
    }  # fmt: skip
    if kind == "ptq":  # the search takes its time
        content["smooth_piecewise_search"] = False
    done = run_here("train", write_config(tmp_path / f"{kind}.json", content))
    assert done.returncode == 0, done.stderr
    wanted = {"ptq": "a8w8 by smooth, rounding to nearest", "gptq": "weight_only_int4 by GPTQ"}[kind]
    assert f"quantized to {wanted} in " in done.stdout and "held out: 4 rows of " in done.stdout


def test_several_processes_are_refused_before_anything_starts(
    run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    keys = quantization_keys(tiny_llama, tmp_path / "o", data=data)
    done = run_here("train", "--nproc", "2", *keys)
    assert done.returncode == 2 and "do_ptq runs in one process on one device; found 2 processes. Start" in done.stderr
    done = run_here("train", "--nproc", "2", "do_train=true", *keys)
    assert done.returncode == 2 and "found 2 processes. Train without it, then run paddlesft quantize" in done.stderr
    done = run_here("train", *keys, PADDLE_TRAINERS_NUM="4")
    assert done.returncode == 2 and "found 4 processes" in done.stderr
    assert not (tmp_path / "o").exists()


def test_adapters_are_refused_before_training(run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    keys = quantization_keys(tiny_llama, tmp_path / "o", data=data)
    done = run_here("train", "do_train=true", "lora=true", *keys)
    assert done.returncode == 2 and "paddlesft merge-lora --lora_path" in done.stderr
    assert not (tmp_path / "o").exists()


def test_training_and_quantization_in_one_run(run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    keys = [*quantization_keys(tiny_llama, tmp_path / "o", data=data), "quant_type=wint8", "do_train=true"]
    keys += ["max_steps=2", "learning_rate=1e-3", "save_strategy=no", "warmup_steps=0"]
    result = tmp_path / "o-weight_only_int8"
    result.mkdir()
    (result / "mine").touch()
    done = run_here("train", *keys)
    assert done.returncode == 2 and "o-weight_only_int8: it is a directory that is not empty" in done.stderr
    assert not (tmp_path / "o").exists()
    (result / "mine").unlink()
    done = run_here("train", *keys)
    assert done.returncode == 0, done.stderr
    assert f"after training the model is quantized into {result}" in done.stdout
    assert (tmp_path / "o" / "model.safetensors").is_file()
    told = json.loads((result / "paddlesft.json").read_text(encoding="utf-8"))
    trained = json.loads((tmp_path / "o" / "paddlesft.json").read_text(encoding="utf-8"))
    assert told["base"]["fingerprint"] == trained["fingerprint"]


# ---- interruptions ----


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "paddlesft", "quantize", *arguments],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells turn it off in the background
    )


def interrupt(arguments: list[str], work: Path, how: signal.Signals) -> tuple[int, str]:
    """Start a run and stop it when one more layer is done."""
    kept = len(list(work.glob("layer-*.json")))
    process = start(arguments)
    deadline = time.monotonic() + 120
    while len(list(work.glob("layer-*.json"))) == kept and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate(timeout=60)[0]
    return process.returncode, said


def test_killed_and_interrupted_runs_go_on_at_the_layer(smollm2: Path, data: Path, tmp_path: Path) -> None:
    """Two endings of a run, and the directory is the same byte for byte as that of a run that nobody stopped."""
    model = write_tiny_llama(tmp_path / "model", smollm2, num_hidden_layers=12, intermediate_size=256)
    output, work = tmp_path / "模型-int4", tmp_path / ".模型-int4.quantizing"
    arguments = [*quantization_keys(model, output, data=data)[:2], *quantization_keys(model, output, data=data)[3:]]
    arguments += ["do_gptq=true", "gptq_step=4"]
    process = start(arguments)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    whole = output.rename(tmp_path / "whole")

    code, said = interrupt(arguments, work, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    assert not output.exists()
    killed_at = len(list(work.glob("layer-*.json")))
    assert killed_at >= 1
    code, said = interrupt(arguments, work, signal.SIGINT)
    assert code == 130 and "Traceback" not in said and "The same command goes on there" in said, said
    assert not output.exists() and len(list(work.glob("layer-*.json"))) > killed_at
    process = start(arguments)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert f" of 12 layers are done already; finished ones are kept in {work} until the end" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole", output.name]
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in output.iterdir()) == names
    compared = [name for name in names if name != "quant_report.json"]
    assert filecmp.cmpfiles(whole, output, compared, shallow=False) == (compared, [], [])
    reports = [json.loads((path / "quant_report.json").read_text(encoding="utf-8")) for path in (whole, output)]
    assert reports[1].pop("run")["layers_kept"] > killed_at
    reports[0].pop("run")
    assert reports[0] == reports[1]


def test_ctrl_c_says_how_to_go_on(
    run_here: Callable, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlesft.cli import quantize as verb

    real = verb._Display.layer

    def stop(self: object, done: int, *rest: object) -> None:
        real(self, done, *rest)
        raise KeyboardInterrupt

    keys = [*quantization_keys(tiny_llama, tmp_path / "o", data=data), "quant_type=wint8"]
    with monkeypatch.context() as patch:
        patch.setattr(verb._Display, "layer", stop)
        done = run_here("quantize", *keys)
    work = tmp_path / ".o.quantizing"
    assert done.returncode == 130 and (
        f"interrupted: 1 of 2 layers are done and kept in {work}. The same command goes on there; remove that "
        "directory to forget them."
    ) in done.stderr
    done = run_here("quantize", *keys)
    assert done.returncode == 0 and "1 of 2 layers are done already" in done.stdout
    assert not work.exists()


# ---- truth ----


def test_the_real_model_end_to_end(run_cli: Callable, run_here: Callable, smollm2: Path, tmp_path: Path) -> None:
    """8 bits cost the real model next to nothing, and predict answers with the result as it is."""
    rows = REPO / "paddlesft" / "data" / "samples" / "identity_eval.jsonl"
    output = tmp_path / "int8"
    done = run_cli(
        "quantize", "quant_type=WINT8", f"model_name_or_path={smollm2}", f"output_dir={output}",
        f"eval_dataset_path={rows}", "max_eval_samples=6", "max_ppl_increase=0.03",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((output / "quant_report.json").read_text(encoding="utf-8"))
    assert abs(report["perplexity_increase"]) < 0.03 and report["same_top"] > 0.9
    assert len(report["layers"]) == 210
    before, after = (report[key]["sizes"]["disk_of"] for key in ("before", "after"))
    assert after["quantized layers"] < 0.26 * before["quantized layers"]
    assert after["embeddings"] == before["embeddings"]
    question = tmp_path / "question.jsonl"
    question.write_text('{"src": "What is the capital of France?", "tgt": ""}\n', encoding="utf-8")
    done = run_here(
        "predict", f"model_name_or_path={output}", f"data_file={question}", f"output_file={tmp_path / 'answers.json'}",
        "max_new_tokens=12", "decode_strategy=greedy_search",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8").splitlines()[0])
    assert "Paris" in answer["output"]
