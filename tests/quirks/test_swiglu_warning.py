"""The deprecation warning of swiglu is still there, and kept away."""

from __future__ import annotations

import re
import subprocess
import sys

from paddlesft.quirks.swiglu_warning import MESSAGE

PROGRAM = """
{first}
import paddle
from paddlenlp.transformers.llama.modeling import LlamaConfig, LlamaMLP
LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=8))(paddle.ones([1, 1, 8]))
"""


def stderr_of(first: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM.format(first=first)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_paddlenlp_still_calls_the_deprecated_swiglu() -> None:
    """When this fails, paddlenlp has moved on: remove the quirk."""
    assert re.search(MESSAGE, stderr_of("import warnings, paddlesft; warnings.resetwarnings()"))


def test_the_warning_is_kept_away() -> None:
    assert "swiglu" not in stderr_of("import paddlesft")
