"""Paddle's C++ side warns once in every traced program that functions with ``out`` arguments ignore them.

``W... eager_utils.cc] Paddle static graph(PIR) not support input out tensor for now!!!!!`` comes from softmax and
others, whether ``out`` is given or not. Seen with paddlepaddle 3.3.1 (``paddle/fluid/pybind/eager_utils.cc``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

TEXT = b"not support input out tensor for now"


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Leave the warning out of what is written to standard error meanwhile; everything else comes afterwards."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if TEXT not in line:
                    os.write(2, line)
