"""``paddlesft train`` in a rank that a launcher has started: the first one talks, each says why it ends."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from paddlesft.cli.train_launch import LaunchOptions
from paddlesft.errors import ConfigError, PaddleSFTError, UserError


def run_rank(options: LaunchOptions, keys: Sequence[str]) -> int:
    """Do this rank's share of the run.

    Args:
        options: what the arguments ask of a launcher, which is too late here.
        keys: the config file and keys.

    Returns:
        The exit code. A rank that fails ends its process here and now: leaving in order can mean to wait for ranks that
        are gone.
    """
    from paddlesft.parallel.process_guard import end_with_parent
    from paddlesft.parallel.rank_ends import FAILED, USER_ERROR, last_words, leave_last_words

    end_with_parent()  # a launcher that is killed leaves nothing behind
    try:
        if options != LaunchOptions():
            raise ConfigError(
                "command line: --nproc, --log_dir and --max_restarts are for paddlesft train, which launches the ranks "
                "itself. paddle.distributed.launch has launched these: give it --nproc_per_node and --log_dir."
            )
        return _train(keys)
    except UserError as error:
        leave_last_words(last_words(USER_ERROR, str(error)))
        print(f"paddlesft train: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException as error:
        trace = traceback.format_exc()
        leave_last_words(last_words(FAILED, f"{type(error).__name__}: {error}", trace))
        print(f"paddlesft train: {error}" if isinstance(error, PaddleSFTError) else trace, file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(keys: Sequence[str]) -> int:
    from paddlesft.cli.train import train_here
    from paddlesft.cli.train_display import TrainDisplay
    from paddlesft.parallel.rank_ends import own_rank
    from paddlesft.parallel.rank_terminal import rank_terminal

    if own_rank() != 0:
        return train_here(keys, TrainDisplay(quiet=True))
    terminal = rank_terminal()
    display = TrainDisplay(terminal=terminal)
    if terminal is not None:
        logging.getLogger("paddlesft").addHandler(_Notes(display))
    else:  # paddle's launcher shows this rank's whole log
        _silence_fleet()
    return train_here(keys, display)


def _silence_fleet() -> None:
    """Keep what paddle tells about its groups of ranks out of this rank's output; the other ranks' logs have it."""
    from paddle.distributed.fleet.utils.log_util import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Current global rank")


class _Notes(logging.Handler):
    """Shows the library's warnings on the launcher's terminal; they stand in this rank's log too."""

    def __init__(self, display: object) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.warning(f"Note: {record.getMessage()}")
