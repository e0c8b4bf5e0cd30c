"""``import paddle`` prints two lines of warning on stderr whenever ``OMP_NUM_THREADS`` is above 1.

They come from ``paddle.base.__bootstrap__`` (paddlepaddle 3.0.0 to 3.3.1) and advise one thread, which leaves the other
cores idle: the opposite of what ``thread_default`` is for, and what every user would see first. Those two lines are
dropped while ``paddle.base`` is imported; everything else that is printed passes through.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

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


class _Finder:
    """Finds the module as Python would, and runs it with the filter; takes itself away after that."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with contextlib.redirect_stderr(_Filter(sys.stderr)):
                    run(module)

            spec.loader.exec_module = exec_module
        return spec


def apply() -> bool:
    """Arrange for the filter unless paddle is imported already.

    Returns:
        Whether it was arranged by this call.
    """
    if MODULE in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return False
    sys.meta_path.insert(0, _Finder())
    return True
