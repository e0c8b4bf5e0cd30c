"""How ``paddlesft train`` starts the ranks of a run: how many, where, and what is shown of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddlesft.errors import ConfigError, PaddleSFTError, UserError

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.parallel.launch import Launched
    from paddlesft.parallel.nodes import Nodes

WORLD = "PADDLE_TRAINERS_NUM"
LOGS = "log"  # in output_dir
OTHER_LAUNCHERS = {"nproc_per_node": "nproc"}  # paddle's and torchrun's name


class RanksFailed(PaddleSFTError):
    """A rank of the run has failed; its error is the text."""


@dataclass(frozen=True)
class LaunchOptions:
    """The options of ``paddlesft train`` that are not keys of the config.

    Attributes:
        nproc: ranks on this machine; None to follow the devices.
        log_dir: where their logs go; None for output_dir/log.
        max_restarts: how often a run whose rank died is started again.
    """

    nproc: int | None = None
    log_dir: str | None = None
    max_restarts: int = 0


def take_launch_options(argv: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Take the options of the launch out of the arguments.

    Args:
        argv: the arguments behind ``train``; ``--name value``, ``--name=value`` and ``name=value`` are the same.

    Returns:
        The options, and the other arguments.

    Raises:
        ConfigError: values that cannot be; all at once.
    """
    least = {"nproc": 1, "max_restarts": 0}
    found: dict[str, int | str] = {}
    rest: list[str] = []
    problems: list[str] = []
    queue = list(argv)
    while queue:
        token = queue.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        name = OTHER_LAUNCHERS.get(name.replace("-", "_"), name.replace("-", "_"))
        if name not in (*least, "log_dir") or not (equals or token.startswith("--")):
            rest.append(token)
            continue
        if not equals:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else ""
        if name == "log_dir":
            found[name] = value
            if not value:
                problems.append("command line: --log_dir needs a directory behind it.")
        elif value.isdigit() and int(value) >= least[name]:
            found[name] = int(value)
        else:
            found_there = repr(value) if value else "nothing behind it"
            allowed = f"a whole number from {least[name]}"
            problems.append(f"command line: --{name}: found {found_there}; allowed: {allowed}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return LaunchOptions(**found), rest


def launch_ranks(options: LaunchOptions, keys: Sequence[str]) -> bool:
    """Run the training as ranks of its own, if there is more than one.

    Args:
        options: see ``LaunchOptions``.
        keys: the config file and keys.

    Returns:
        False, with nothing done, for a run of a single process; True when the ranks have trained.

    Raises:
        UserError: config, layout, environment or options cannot be used, or a rank has found such an error.
        RanksFailed: a rank has failed.
    """
    from paddlesft.parallel.nodes import read_nodes

    nodes = read_nodes()
    ranks, on_cpu = _ranks_here(options, keys)
    world = ranks * (nodes.count if nodes is not None else 1)
    if world == 1:
        return False
    log_dir = _check(options, keys, world, nodes)
    from paddlesft.parallel import rank_terminal
    from paddlesft.parallel.launch import launch, launch_again

    width = shutil.get_terminal_size().columns
    terminals = rank_terminal.describe_terminals(sys.stdout, sys.stderr, width)
    print(_announcement(ranks, nodes, log_dir), flush=True)
    launched = launch_again(
        options.max_restarts,
        lambda attempt: launch(
            [sys.executable, "-m", "paddlesft", "train", *keys],
            ranks,
            log_dir,
            nodes=nodes,
            environ={rank_terminal.TERMINALS: terminals},
            show=_show,
            on_cpu=on_cpu,
            attempt=attempt,
        ),
        lambda launched, attempt: _tell_restart(launched, attempt, options.max_restarts),
    )
    if launched.code == 0:
        return True
    raise (UserError if launched.code == UserError.exit_code else RanksFailed)(launched.report())


def only_quantizes(options: LaunchOptions, keys: Sequence[str]) -> bool:
    """Return whether a config asks for a quantization and no training: there is nothing to launch for it.

    Raises:
        ConfigError: the config is wrong; several processes are, too.
    """
    from paddlesft.config import load_run_config

    started = int(os.environ.get(WORLD) or 1)
    with _as_if_launched(max(options.nproc or 1, started)):
        run_config = load_run_config(None, list(keys))
    return bool(run_config.quantization.asked) and not run_config.training.do_train


def _ranks_here(options: LaunchOptions, keys: Sequence[str]) -> tuple[int, bool]:
    """Return how many ranks this machine gets, and whether they compute on its processor."""
    from paddlesft.config import load_run_config
    from paddlesft.parallel.visible_gpus import require_gpus, visible_gpus

    with _as_if_launched(options.nproc or 1):
        training = load_run_config(None, list(keys)).training
    gpus = 0 if training.no_cuda or training.device == "cpu" else visible_gpus()
    require_gpus(training.device, gpus)
    if gpus == 0:
        return options.nproc or 1, True
    if options.nproc is None:
        return (gpus if training.device in ("auto", "gpu") else 1), False
    if options.nproc > gpus:
        raise ConfigError(
            f"command line: --nproc: found {options.nproc}; visible GPUs: {gpus}; allowed: at most one process on each."
            " CUDA_VISIBLE_DEVICES chooses among them; device=cpu trains without."
        )
    return options.nproc, False


def _check(options: LaunchOptions, keys: Sequence[str], world: int, nodes: Nodes | None) -> Path:
    """Find the errors of config and layout before any rank starts, and return the directory of the logs."""
    from paddlesft.config import load_run_config
    from paddlesft.training.events import Observer
    from paddlesft.training.run_layout import run_layout

    with _as_if_launched(world):
        run_config = load_run_config(None, list(keys))
        _require_output_dir(run_config)
        run_layout(run_config, Observer())
    if options.log_dir:
        return Path(options.log_dir)
    logs = Path(run_config.training.output_dir).expanduser() / LOGS
    return logs / f"node-{nodes.rank}" if nodes is not None else logs


def _require_output_dir(run_config: RunConfig) -> None:
    if not run_config.training.output_dir:
        raise ConfigError("output_dir is not set: name the directory that receives checkpoints, logs and the result.")


@contextlib.contextmanager
def _as_if_launched(world: int) -> Iterator[None]:
    """Let what depends on the number of processes see the one to come."""
    before = os.environ.get(WORLD)
    os.environ[WORLD] = str(world)
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORLD]
        else:
            os.environ[WORLD] = before


def _announcement(ranks: int, nodes: Nodes | None, log_dir: Path) -> str:
    text = f"{ranks} process{'es' if ranks > 1 else ''}"
    if nodes is not None:
        text += f" on this machine, number {nodes.rank} of {nodes.count} (master {nodes.address}:{nodes.port})"
        if nodes.rank > 0:
            text += "; the run is shown on machine 0"
    return f"{text}; logs: {log_dir}/workerlog.N"


def _show(stream: str, data: bytes) -> None:
    to = sys.stdout if stream == "stdout" else sys.stderr
    to.flush()
    to.buffer.write(data)
    to.buffer.flush()


def _tell_restart(launched: Launched, attempt: int, most: int) -> None:
    print(f"paddlesft train: {launched.report()}\n", file=sys.stderr)
    print(
        f"starting again, {attempt} of {most} (--max_restarts): the run goes on from its newest complete checkpoint",
        file=sys.stderr,
        flush=True,
    )
