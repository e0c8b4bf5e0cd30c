"""Ranks are started, shown, stopped and never left behind; the one that failed first is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlesft.parallel.launch import Launched, launch, launch_again
from paddlesft.parallel.rank_ends import FAILED, USER_ERROR, LastWords, RankEnd
from tests.parallel.ranks import PROGRAMS, REPO

PLAIN = PROGRAMS / "plain_rank.py"


def launch_plain(what: str, logs: Path, **options: object) -> tuple[Launched, dict[str, bytes]]:
    shown = {"stdout": b"", "stderr": b""}

    def show(stream: str, data: bytes) -> None:
        shown[stream] += data

    return launch([sys.executable, str(PLAIN), what], 2, logs, show=show, on_cpu=True, **options), shown


def test_the_first_rank_is_shown_and_all_have_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # stops paddle's launcher with an IndexError
    monkeypatch.setenv("RANK", "5")  # torchrun's; not of these ranks
    monkeypatch.setenv("PADDLE_NNODES", "3")  # would override the launcher's argument
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    launched, shown = launch_plain("well", tmp_path / "logs", environ={"PADDLESFT_TERMINALS": "stderr:77"})
    assert launched.code == 0 and launched.failure is None, launched.report()
    assert shown["stdout"].decode() == "\x1b[1mübrig\x1b[0m\n"
    assert shown["stderr"] == b"\rlive 77 False True"
    first, second = (path.read_text(encoding="utf-8") for path in launched.logs)
    assert "rank 0 of 2" in first and "übrig\n" in first and "live" not in first and "\x1b" not in first
    assert "rank 1 of 2" in second and "übrig" not in second
    for log in (first, second):
        for line in ("CUDA_VISIBLE_DEVICES=-1", "FLAGS_selected_gpus=None", "PADDLE_DISTRI_BACKEND=gloo", "RANK=None"):
            assert line in log.splitlines(), log
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["launcher.log", "workerlog.0", "workerlog.1"]
    assert not any("s3cr3t" in path.read_text(encoding="utf-8") for path in (tmp_path / "logs").iterdir())


def test_lines_and_the_live_line_of_one_terminal_keep_their_order(tmp_path: Path) -> None:
    launched, shown = launch_plain("well", tmp_path, environ={"PADDLESFT_TERMINALS": "stdout,stderr:50"})
    assert launched.code == 0, launched.report()
    assert shown == {"stdout": "\x1b[1mübrig\x1b[0m\n\rlive 50 True True".encode(), "stderr": b""}
    assert "live" not in launched.logs[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("killed", "rank 1 was killed (SIGKILL). Linux does that to the largest process when memory runs out"),
        ("silent", "rank 1 ended with exit code 7 and without a word. Its log says more."),
        ("words", "rank 1 failed first: ValueError: gone\nTraceback ...\nValueError: gone\nLogs: "),
    ],
)
def test_the_rank_that_failed_first_is_on_top(tmp_path: Path, what: str, message: str) -> None:
    begin = time.monotonic()
    launched, _ = launch_plain(what, tmp_path / "logs")
    assert launched.code == 1 and launched.failure.rank == 1
    assert launched.report().startswith(message)
    assert f"{tmp_path / 'logs'}/workerlog.N (one for each rank)" in launched.report()
    assert time.monotonic() - begin < 60
    assert not alive(pids(tmp_path / "logs"))


def test_a_command_that_does_not_start_is_told(tmp_path: Path) -> None:
    launched = launch(["/no/such/program"], 2, tmp_path, on_cpu=True)
    assert launched.code == 1 and "ended with exit code 127" in launched.report()
    assert "cannot start /no/such/program: No such file or directory" in launched.logs[0].read_text(encoding="utf-8")


DRIVER = """
import sys
from pathlib import Path
from paddlesft.parallel import launch
launch.STOP_SECONDS = 3.0
launch.launch([sys.executable, {program!r}, {what!r}], 2, Path({logs!r}), on_cpu=True)
"""


def pids(logs: Path) -> list[int]:
    """Return the processes that have written into the logs; both ranks have when there are two."""
    found = []
    for path in logs.glob("workerlog.*"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if " pid " in line]
        found += [int(line.split()[-1]) for line in lines]
    return found


def alive(numbers: list[int], seconds: float = 10) -> list[int]:
    """Return the processes that are still there after a while."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in numbers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize(
    ("number", "what", "code"),
    [
        (signal.SIGTERM, "wait", 143),
        (signal.SIGINT, "wait", -signal.SIGINT),  # what a shell sees as 130
        (signal.SIGTERM, "stubborn", 143),  # the ranks do not listen
        (signal.SIGKILL, "wait", -signal.SIGKILL),  # the launch itself cannot do anything any more
    ],
)
def test_no_rank_outlives_the_launch(tmp_path: Path, number: int, what: str, code: int) -> None:
    logs = tmp_path / "logs"
    driver = DRIVER.format(program=str(PLAIN), what=what, logs=str(logs))
    process = subprocess.Popen(
        [sys.executable, "-c", driver],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells turn it off in the background
    )
    try:
        end = time.monotonic() + 60
        while len(pids(logs)) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert len(pids(logs)) == 2 and len(alive(pids(logs), 0)) == 2
        time.sleep(0.5)
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(40) == code
        assert not alive(pids(logs))
        assert time.monotonic() - begin < 20
    finally:
        process.kill()


def test_dead_ranks_are_started_again_and_user_errors_are_not(tmp_path: Path) -> None:
    told = []

    def attempts(*codes: int, kind: str = FAILED) -> tuple[Launched, list[int]]:
        told.clear()
        done = []

        def run(attempt: int) -> Launched:
            done.append(attempt)
            code = codes[attempt]
            failure = RankEnd(1, code, 0.0, LastWords(1, kind, "x")) if code else None
            return Launched(code, tmp_path, failure=failure)

        return launch_again(2, run, lambda launched, attempt: told.append((launched.code, attempt))), done

    launched, done = attempts(1, 0)
    assert (launched.code, done, told) == (0, [0, 1], [(1, 1)])
    launched, done = attempts(1, 1, 1)
    assert (launched.code, done, told) == (1, [0, 1, 2], [(1, 1), (1, 2)])
    launched, done = attempts(2, 0, kind=USER_ERROR)
    assert (launched.code, done, told) == (2, [0], [])


def test_paddles_own_restart_still_needs_etcd(tmp_path: Path) -> None:
    """Fails once paddle's launcher restarts dead ranks without an etcd server: then ``launch_again`` can go."""
    (tmp_path / "rank.py").write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise SystemExit(1)")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "1", "--max_restart", "2"]
    command += ["--elastic_level", "1", "--log_dir", str(tmp_path / "log"), str(tmp_path / "rank.py")]
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "starts").read_text() == "x"
