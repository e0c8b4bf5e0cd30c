"""What ``import paddlesft`` sets up for paddle."""

from __future__ import annotations

import os
import subprocess
import sys

SHOW = "import paddlesft, os; print(os.environ.get('{name}'))"


def variable_after_import(name: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(name=name)],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_variables_are_set_for_paddle() -> None:
    assert variable_after_import("KMP_BLOCKTIME") == "0"
    assert variable_after_import("TOKENIZERS_PARALLELISM") == "false"
    assert variable_after_import("GLOG_minloglevel") == "1"


def test_what_the_user_has_set_is_left_alone() -> None:
    assert variable_after_import("KMP_BLOCKTIME", KMP_BLOCKTIME="200") == "200"
    assert variable_after_import("GLOG_minloglevel", GLOG_minloglevel="0") == "0"


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "('paddle', 'paddlenlp', 'numpy', 'rich', 'datasets')"
    show = f"import paddlesft, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
