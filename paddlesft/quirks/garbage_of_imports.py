"""Importing paddlenlp takes seconds of one core, and a fifth of them go into looking for garbage that is not there.

paddlenlp 3.0.0b4 imports some 4,700 modules (scipy, scikit-learn, pandas, matplotlib, fastapi among them) whatever is
needed of it; gradio 6 is not much smaller. Each of their functions and classes counts towards Python's garbage
collector, which goes through all of them a thousand times and finds next to nothing. It rests while these packages are
imported, and leaves what they made out of later searches.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from paddlesft.quirks.around_import import around_import

PACKAGES = ("paddle", "paddlenlp", "gradio")


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Let the garbage collector rest, and then pass over what is there; nothing changes if it rests already."""
    if not gc.isenabled():
        yield
        return
    gc.collect()  # what is garbage already must not be kept for ever
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def apply() -> None:
    """Arrange for it, for each package that has not been imported."""
    for package in PACKAGES:
        around_import(package, without_collector)
