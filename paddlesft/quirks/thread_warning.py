"""``import paddle`` prints two lines of warning on stderr whenever ``OMP_NUM_THREADS`` is above 1.

They come from ``paddle.base.__bootstrap__`` (paddlepaddle 3.0.0 to 3.3.1) and advise one thread, which leaves the other
cores idle: the opposite of what ``thread_default`` is for, and what every user would see first. Those two lines are
dropped while ``paddle.base`` is imported; everything else that is printed passes through.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from paddlesft.quirks.around_import import around_import

MODULE = "paddle.base"
DROPPED = ("WARNING: OMP_NUM_THREADS set to ", "PLEASE USE OMP_NUM_THREADS WISELY.")


class _Filter:
    """A stream that drops the lines and hands on the rest."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._in_dropped_line = False

    def write(self, text: str) -> int:
        if text.startswith(DROPPED):
            self._in_dropped_line = not text.endswith("\n")
        elif self._in_dropped_line and text == "\n":
            self._in_dropped_line = False
        else:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _filtered() -> contextlib.redirect_stderr[Any]:
    return contextlib.redirect_stderr(_Filter(sys.stderr))


def apply() -> bool:
    """Arrange for the filter unless paddle is imported already.

    Returns:
        Whether it was arranged by this call.
    """
    return around_import(MODULE, _filtered)
