"""The READMEs tell the truth: their commands run, their files exist, both languages show the same."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from paddlesft import known_versions
from paddlesft.cli.main import VERBS
from paddlesft.config import load_run_config

REPO = Path(__file__).resolve().parent.parent
ENGLISH = (REPO / "README.md").read_text(encoding="utf-8")
CHINESE = (REPO / "README_zh.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("write_model_table", REPO / "tools" / "write_model_table.py")
write_model_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_model_table)
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every line of the blocks marked bash."""
    return [line for block in blocks(text, "bash") for line in block.splitlines() if line and not line.startswith("#")]


def matrix(text: str) -> list[list[str]]:
    """The rows of the table of methods, without its head: first the method, then one cell per kind of hardware."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 4 and row[0].strip()]


def cell_commands(text: str) -> list[str]:
    return [command for row in matrix(text) for cell in row[1:] for command in re.findall(r"`([^`]+)`", cell)]


def tree(text: str) -> list[tuple[str, str]]:
    """The entries of the file tree: path and purpose."""
    block = next(block for block in blocks(text, "text") if "\nsetup.py " in block)
    return [tuple(re.split(r"\s+", line, maxsplit=1)) for line in block.splitlines()]


AFTER_THE_DEMO = [command for command in commands(ENGLISH) if not command.startswith(("make ", "paddlesft serve "))]
SERVE = [command for command in commands(ENGLISH) if command.startswith("paddlesft serve ")]
ON_CPU = [command for command in cell_commands(ENGLISH) if "configs/smollm2" in command]
ON_GPU = [command for command in cell_commands(ENGLISH) if command.startswith("python ")]


@pytest.fixture(scope="session")
def shell(checkout: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a reader would: in the repository's root, with the environment activated."""

    def run(command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=checkout,
            env={**os.environ, "PATH": path, "COLUMNS": "110"},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


# ---- both languages ----


def test_both_languages_show_the_same_commands() -> None:
    assert commands(ENGLISH) == commands(CHINESE)
    assert cell_commands(ENGLISH) == cell_commands(CHINESE)
    assert len(commands(ENGLISH)) >= 6


def test_both_languages_show_the_same_demo_and_the_same_files() -> None:
    assert blocks(ENGLISH, "text")[0] == blocks(CHINESE, "text")[0]
    assert [path for path, _ in tree(ENGLISH)] == [path for path, _ in tree(CHINESE)]


def test_what_is_not_built_is_marked_in_both() -> None:
    unbuilt = [[cell == "not built yet" for cell in row] for row in matrix(ENGLISH)]
    assert unbuilt == [[cell == "尚未完成" for cell in row] for row in matrix(CHINESE)]
    for row in matrix(ENGLISH):
        for cell in row[1:]:
            assert cell in ("not built yet", "–") or re.fullmatch(r"`[^`]+`( ¹)?", cell), cell


def test_the_table_of_models_is_what_the_family_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_model_table.main(["--check"]) == 0, capsys.readouterr().out
    assert ENGLISH.count("| `qwen2` |") == CHINESE.count("| `qwen2` |") == 1
    assert write_model_table.table("README.md").count("✓") == write_model_table.table("README_zh.md").count("✓") > 50


def test_a_table_of_models_that_is_out_of_date_is_found_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_model_table, "REPO", tmp_path)
    begin, end = write_model_table.BEGIN, write_model_table.END
    for page in write_model_table.HEADS:
        (tmp_path / page).write_text(f"before\n{begin}\n| an old table |\n{end}\nbehind\n", encoding="utf-8")
    assert write_model_table.main(["--check"]) == 1
    said = "the table of models is out of date. Run: python tools/write_model_table.py"
    assert capsys.readouterr().out == f"README.md: {said}\nREADME_zh.md: {said}\n"
    assert "| an old table |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert write_model_table.main([]) == 0
    assert write_model_table.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text == f"before\n{begin}\n{write_model_table.table('README.md')}\n{end}\nbehind\n"
    (tmp_path / "README.md").write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md has no place for the table: lines <!-- models"):
        write_model_table.main([])


# ---- files ----


@pytest.mark.parametrize("path, purpose", tree(ENGLISH))
def test_the_tree_names_what_exists(path: str, purpose: str) -> None:
    target = REPO / path
    assert target.is_dir() if path.endswith("/") else target.is_file()
    assert purpose.strip()


def test_the_tree_names_every_room_and_every_top_level_entry() -> None:
    named = {path.rstrip("/") for path, _ in tree(ENGLISH)}
    rooms = {f"paddlesft/{path.parent.name}" for path in (REPO / "paddlesft").glob("*/__init__.py")}
    assert rooms <= named
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode == 0:  # not in an unpacked archive
        top = {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line and not line.startswith(".")}
        assert top <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_listed_in_the_index() -> None:
    index = (REPO / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (REPO / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert index.count(f"({page.relative_to(REPO / 'docs').as_posix()})") == 1


def test_the_page_on_installing_shows_the_table_of_versions() -> None:
    page = (REPO / "docs" / "install.md").read_text(encoding="utf-8")
    for part in known_versions.CORE:
        assert f"| {part.name} | `{part.allowed}` | {part.tested} | {part.purpose} |" in page
    assert known_versions.EMBEDDED_MODEL_COMMAND in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_verbs_named_anywhere_exist(page: Path) -> None:
    for verb in re.findall(r"(?:^|[`/ ])paddlesft ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        if verb in VERBS:
            continue
        assert verb in {"wants", "is", "takes", "first"}, f"{page.name} names paddlesft {verb}"


# ---- commands ----


def test_make_knows_the_targets() -> None:
    for command in [c for c in commands(ENGLISH) if c.startswith("make ")]:
        done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert commands(ENGLISH)[:2] == ["make demo", "make test"]


def test_the_two_first_commands_do_what_is_said() -> None:
    plan = subprocess.run(["make", "-n", "demo", "test"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/paddlesft demo" in plan
    assert ".venv/bin/python -m pytest" in plan


@pytest.mark.slow
def test_the_excerpt_is_what_the_demo_prints(finished_demo: tuple[Path, str]) -> None:
    """Figures and answers differ from machine to machine; the lines and their order do not."""

    def shape(line: str) -> str:
        line = re.sub(r"[│┃].*", "│", line)
        return re.sub(r"[\d.,:]+(e[-+]\d+)?", "#", line).strip()

    _, text = finished_demo
    printed = [shape(line) for line in text.splitlines()]
    position = 0
    for raw in blocks(ENGLISH, "text")[0].splitlines():
        line = shape(raw)
        if line and line != "│" and not raw.startswith((">", "  ", "...")):
            assert line in printed[position:], f"the demo does not print (in this order): {raw}"
            position = printed.index(line, position)


@pytest.mark.slow
@pytest.mark.parametrize("command", AFTER_THE_DEMO)
def test_commands_that_follow_the_demo(
    command: str, finished_demo: tuple[Path, str], shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if command == ". .venv/bin/activate":
        assert (REPO / ".venv" / "bin" / "activate").is_file()
        return
    done = shell(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    out, _ = finished_demo
    if " chat " in command:
        assert "Rowan" in done.stdout or "PaddleSFT" in done.stdout
    elif " predict " in command:
        written = out / Path(command.split("--output_file ")[1]).name
        rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == 12
        assert all(row["output"] for row in rows)
    elif " merge-lora " in command:
        assert json.loads((out / "merged_bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    elif " quantize " in command:
        report = json.loads((out / "int8" / "quant_report.json").read_text(encoding="utf-8"))
        assert report["perplexity_increase"] < 0.02
    elif " export " in command:
        assert json.loads((out / "onnx" / "paddlesft.json").read_text(encoding="utf-8"))["kind"] == "graph"
    elif " check-data " in command:
        assert "88" in done.stdout
    else:
        assert " doctor" in command
        assert "Healthy" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ON_CPU)
def test_commands_for_the_cpu_start_and_finish(
    command: str, shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Two steps on eight rows instead of the whole run; everything else as the config says."""
    if " rehearse " in command:
        done = shell(command)
        assert done.returncode == 0 and "PASS" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        return
    if " quantize " in command:
        short = "gptq_step=1 per_device_train_batch_size=2 max_eval_samples=2"
        done = shell(f"{command} {short} output_dir={tmp_path / 'run'}")
        assert done.returncode == 0 and "Report: " in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        return
    short = "max_steps=2 max_train_samples=8 max_eval_samples=2 evaluation_strategy=no save_strategy=no"
    done = shell(f"{command} {short} load_best_model_at_end=false output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run" / "paddlesft.json").is_file()
    assert (tmp_path / "run" / "train_log.jsonl").is_file()


@pytest.mark.parametrize("command", ON_GPU)
def test_commands_for_gpus_name_a_script_and_a_config_that_loads(command: str) -> None:
    """No GPU is needed to see that the script is there and its config is right."""
    words = shlex.split(command)
    script = next(word for word in words if word.endswith(".py"))
    assert (REPO / script).is_file()
    if "launch" in command:
        assert words[1:3] == ["-m", "paddle.distributed.launch"]
    if script == "llm/flask_server.py":
        assert words[-2:] == ["--model_name_or_path", "DIR"]
        return
    config = load_run_config(REPO / next(word for word in words if word.endswith((".yaml", ".json"))))
    assert config.training.do_train or config.quantization.asked
    assert config.training.bf16


@pytest.mark.slow
def test_the_command_that_serves_the_demo(finished_demo: tuple[Path, str], checkout: Path, tmp_path: Path) -> None:
    """As it stands, but for the ports, which others may hold."""
    assert len(SERVE) == 1
    ports = free_port(), free_port()
    words = [*shlex.split(SERVE[0]), "--flask_port", str(ports[0]), "--port", str(ports[1])]
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=checkout, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        api, page = (f"http://127.0.0.1:{port}" for port in ports)
        wait_for(f"{api}/ready", server, log)
        models = httpx.get(f"{api}/v1/models").json()["data"]
        assert {model["id"]: model["adapter"] for model in models} == {"rowan": "lora", "smollm2": None}
        question = {"messages": [{"role": "user", "content": "Who made you?"}], "temperature": 0, "max_tokens": 30}
        said = {}
        for model in ("rowan", "smollm2"):
            reply = httpx.post(f"{api}/v1/chat/completions", json={"model": model, **question}, timeout=120).json()
            said[model] = reply["choices"][0]["message"]["content"]
        assert "PaddleSFT" in said["rowan"] and "PaddleSFT" not in said["smollm2"]
        wait_for(page, server, log)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()}")
