"""paddlenlp calls ``paddle.incubate.nn.functional.swiglu``, which paddle 3.3 deprecates: each program would warn.

Seen with paddlepaddle 3.3.1 and paddlenlp 3.0.0b4 (``transformers/llama/modeling.py``). Both functions compute the
same, and a user can do nothing about the call, so the warning is kept away.
"""

from __future__ import annotations

import warnings

MESSAGE = r"[\s\S]*API \"paddle\.incubate\.nn\.functional\.swiglu"


def apply() -> None:
    """Keep the warning away."""
    warnings.filterwarnings("ignore", message=MESSAGE)
