"""Running something around the import of a module, whoever imports it."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any


class _Finder:
    """Finds one module as Python would, and runs it inside a context; takes itself away after that."""

    def __init__(self, module: str, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self.module, self.context = module, context

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with self.context():
                    run(module)

            spec.loader.exec_module = exec_module
        return spec


def around_import(module: str, context: Callable[[], AbstractContextManager[Any]]) -> bool:
    """Arrange for a module's code to run inside a context when it is first imported.

    Args:
        module: its full name.
        context: makes the context.

    Returns:
        Whether it was arranged by this call: not when the module has been imported, nor a second time.
    """
    if module in sys.modules or any(
        isinstance(one, _Finder) and (one.module, one.context) == (module, context) for one in sys.meta_path
    ):
        return False
    sys.meta_path.insert(0, _Finder(module, context))
    return True
