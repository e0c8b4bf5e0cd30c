"""Start a command as several ranks with ``paddle.distributed.launch``, watch them, and tell which one failed first.

Paddle's launcher names the ranks' addresses and devices and writes ``workerlog.N``. Around it and around each rank
stands a ``process_guard``: nothing outlives this process, and how each rank ended is known. When something fails or
this process is told to stop, everything has ended after at most ``STOP_SECONDS`` + ``KILL_SECONDS``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paddlesft.parallel import process_guard, rank_terminal
from paddlesft.parallel.nodes import Nodes
from paddlesft.parallel.rank_ends import FAILED, RECORDS, USER_ERROR, RankEnd, first_failure, read_ends
from paddlesft.quirks import thread_default

STOP_SECONDS = 20.0  # paddle's launcher needs up to 0.6 s for each rank and 3 s for all
KILL_SECONDS = 5.0
LAUNCHER_LOG = "launcher.log"
JOB = "paddlesft"
TAIL = 2000  # characters of a log that are shown where a rank has left no words
PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)
# Settings of paddle's launcher that override its arguments, and names that paddle's ranks would take for their own.
FOREIGN = (
    "POD_IP", "PADDLE_MASTER", "PADDLE_DEVICES", "PADDLE_NNODES", "PADDLE_NPROC_PER_NODE", "PADDLE_RANK",
    "PADDLE_LOG_DIR", "PADDLE_RUN_MODE", "PADDLE_MAX_RESTART", "PADDLE_ELASTIC_LEVEL", "PADDLE_JOB_ID",
    "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT",
    "DISTRIBUTED_TRAINER_ENDPOINTS", "MASTER_ADDR", "MASTER_PORT", "NNODES", "RANK", "NODE_RANK", "WORLD_SIZE",
    "LOCAL_RANK",
)  # fmt: skip
CPU_RANK = ("CUDA_VISIBLE_DEVICES=-1", "FLAGS_selected_gpus=", "PADDLE_DISTRI_BACKEND=gloo")

Show = Callable[[str, bytes], None]  # ("stdout" or "stderr", what the first rank shows)


@dataclass
class Launched:
    """What is left of a run.

    Attributes:
        code: 0 for success; else the exit code that stands for the first failure: 2 for a user's error, else 1.
        log_dir: where the logs are.
        logs: the ranks' logs on this machine.
        ends: how the ranks of this machine ended.
        failure: the rank that failed first; None when all went well or none has said or shown anything.
    """

    code: int
    log_dir: Path
    logs: list[Path] = field(default_factory=list)
    ends: list[RankEnd] = field(default_factory=list)
    failure: RankEnd | None = None

    def report(self) -> str:
        """Return the error of the rank that failed first, and where the logs are."""
        places = f"Logs: {self.log_dir}/workerlog.N (one for each rank), {self.log_dir / LAUNCHER_LOG}"
        failure = self.failure
        if failure is None:
            tail = _tail(self.log_dir / LAUNCHER_LOG)
            return f"The ranks did not start, or ended without a word. The launcher's log ends in:\n{tail}\n{places}"
        words = failure.words
        if words is None:
            return f"rank {failure.rank} {_how_killed(failure.code)}\n{places}"
        if words.kind == USER_ERROR:
            return words.text
        head = f"rank {failure.rank} failed first: {words.text}" if words.kind == FAILED else words.text
        return "\n".join(filter(None, (head, words.trace.rstrip(), places)))


def launch_again(
    tries: int, run: Callable[[int], Launched], tell: Callable[[Launched, int], None] = lambda launched, attempt: None
) -> Launched:
    """Launch, and launch again when a rank has died; the command goes on from what it has saved.

    Paddle's own way (``--max_restart`` with ``--elastic_level 1``) restarts nothing without an etcd server.

    Args:
        tries: how often to try again.
        run: launches the attempt of the number given.
        tell: told about a failure that another attempt follows, and that attempt's number.

    Returns:
        The last attempt. A user's error is not tried again: it would come back.
    """
    for attempt in range(tries + 1):
        launched = run(attempt)
        user_error = launched.failure and launched.failure.words and launched.failure.words.kind == USER_ERROR
        if launched.code == 0 or user_error or attempt == tries:
            break
        tell(launched, attempt + 1)
    return launched


def launch(
    command: Sequence[str],
    ranks: int,
    log_dir: Path,
    nodes: Nodes | None = None,
    environ: Mapping[str, str] | None = None,
    show: Show | None = None,
    on_cpu: bool = False,
    attempt: int = 0,
) -> Launched:
    """Run a command as several ranks and wait for them.

    Args:
        command: program and arguments; each rank runs it with paddle's variables in its environment.
        ranks: processes on this machine.
        log_dir: receives ``workerlog.N``, N counted on this machine, and ``launcher.log``; added to when they exist.
        nodes: the machines, when there are several.
        environ: more environment variables.
        show: receives what the first rank writes to its ``rank_terminal``.
        on_cpu: hide the GPUs of this machine, and let any number of ranks share its processor.
        attempt: number of the restart; all machines have to agree about it.

    Returns:
        What is left. An interrupted launch (``KeyboardInterrupt``, or SIGTERM as ``SystemExit``) stops all ranks before
        it goes on to the caller.
    """
    log_dir = log_dir.resolve()
    log_dir.mkdir(parents=True, exist_ok=True)
    logs = [log_dir / f"workerlog.{number}" for number in range(ranks)]
    for path in (*logs, log_dir / LAUNCHER_LOG):
        _begin_log(path)
    records = Path(tempfile.mkdtemp(prefix="paddlesft-run-"))
    try:
        rank_terminal.make_pipes(records)
        guard = [process_guard.__file__, str(records)]
        launcher = [sys.executable, *guard, "--", sys.executable, "-m", "paddle.distributed.launch"]
        launcher += ["--nproc_per_node", str(ranks), "--log_dir", str(log_dir), "--job_id", f"{JOB}-{attempt}"]
        launcher += nodes.launcher_arguments() if nodes is not None else []
        launcher += [*guard, *(CPU_RANK if on_cpu else ()), "--", *command]
        with open(log_dir / LAUNCHER_LOG, "ab") as out, _sigterm_as_exit():
            process = subprocess.Popen(
                launcher,
                env=_environment(environ or {}, records, ranks, on_cpu),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which passes it on in order
            )
            try:
                _wait(process, records, show or (lambda stream, data: None))
            finally:
                _stop(process)
        ends = read_ends(records)
    finally:
        shutil.rmtree(records, ignore_errors=True)
        _remove_copies_of_the_environment(log_dir)
    failure = first_failure(ends)
    if process.returncode == 0 and failure is None:
        return Launched(0, log_dir, logs, ends)
    code = 2 if failure is not None and failure.words is not None and failure.words.kind == USER_ERROR else 1
    return Launched(code, log_dir, logs, ends, failure)


def _environment(more: Mapping[str, str], records: Path, ranks: int, on_cpu: bool) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    if on_cpu:  # one name for each rank is all that paddle's launcher looks for; the ranks see none: CPU_RANK
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(ranks)))
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{path}{os.pathsep}{PACKAGE_PARENT}" if path else PACKAGE_PARENT
    thread_default.divide(environment, ranks)
    return {**environment, "PYTHONUNBUFFERED": "1", RECORDS: str(records), **more}


def _wait(process: subprocess.Popen, records: Path, show: Show) -> None:
    """Hand on what the first rank shows until the launcher ends."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
        for name in rank_terminal.STREAMS:
            # for writing too: a rank that closes its end must not look like the end of all
            pipe = os.open(records / name, os.O_RDWR | os.O_NONBLOCK)
            opened.callback(os.close, pipe)
            selector.register(pipe, selectors.EVENT_READ, name)
        while True:
            ended = process.poll() is not None
            ready = selector.select(0 if ended else 0.2)
            for key, _ in ready:
                show(key.data, os.read(key.fd, 1 << 16))
            if ended and not ready:
                return


def _stop(process: subprocess.Popen) -> None:
    """End the launcher and all its ranks, the polite way first."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # Linux ends what it guards
    process.wait(KILL_SECONDS)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind this process instead of ending it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin_log(path: Path) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')} ----\n")


def _remove_copies_of_the_environment(log_dir: Path) -> None:
    """Remove what paddle's launcher has written beside the logs: every environment variable, keys to hubs included."""
    for pattern in ("backup_env.*.json", "envlog.*", f"{JOB}-*.log"):
        for path in log_dir.glob(pattern):
            path.unlink(missing_ok=True)


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-TAIL:].rstrip()


def _how_killed(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code} and without a word. Its log says more."
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return (
            f"was killed ({name}). Linux does that to the largest process when memory runs out (dmesg shows it); so "
            "does anyone with kill -9."
        )
    return f"was ended by {name}. Its log says more."
