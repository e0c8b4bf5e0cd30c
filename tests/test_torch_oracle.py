"""The process with torch: answers, says what went wrong, and can be asked again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torch_oracle import TorchOracle


def test_failures_are_said_and_do_not_spoil_what_follows(smollm2: Path, tmp_path: Path) -> None:
    oracle = TorchOracle()
    try:
        with pytest.raises(AssertionError, match=r"FileNotFoundError: .*absent"):
            oracle("tokens.py", smollm2, tmp_path / "absent")
        (tmp_path / "texts.json").write_text('["a", "b"]')
        assert len(oracle("tokens.py", smollm2, tmp_path / "texts.json")["ids"]) == 2
        with pytest.raises(AssertionError, match=r"tokens.py: the torch process did not answer within 0 s"):
            oracle("tokens.py", smollm2, tmp_path / "texts.json", timeout=0)
    finally:
        oracle.close()
