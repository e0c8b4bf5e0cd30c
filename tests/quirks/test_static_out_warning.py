"""The warning of every traced program is left out, other words on standard error are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddlesft.quirks import static_out_warning

TRACE = """
import sys, paddle
from paddle.static import InputSpec
from paddlesft.quirks import static_out_warning

class Layer(paddle.nn.Layer):
    def forward(self, x):
        return paddle.nn.functional.softmax(x)

def trace():
    layer = Layer()
    specs = [InputSpec([None], "float32", "x")]
    paddle.jit.to_static(layer.forward, input_spec=specs, full_graph=True).concrete_program

if sys.argv[1] == "silenced":
    with static_out_warning.silenced():
        trace()
else:
    trace()
"""


@pytest.mark.slow
def test_paddle_still_warns_and_it_is_left_out(tmp_path: Path) -> None:
    program = tmp_path / "trace.py"  # a file: paddle reads the source of what it traces
    program.write_text(TRACE, encoding="utf-8")
    said = {
        how: subprocess.run([sys.executable, program, how], capture_output=True, check=True).stderr
        for how in ("plain", "silenced")
    }
    assert static_out_warning.TEXT in said["plain"], "paddle no longer warns: remove the quirk"
    assert static_out_warning.TEXT not in said["silenced"]


def test_other_words_pass(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), static_out_warning.silenced():
        os.write(2, b"W1 x] " + static_out_warning.TEXT + b"!\nanother line\n")
        raise ValueError("stop")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "another line\nafter\n"
