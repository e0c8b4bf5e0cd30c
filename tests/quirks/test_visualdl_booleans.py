from pathlib import Path

import pytest
from visualdl import LogWriter

from paddlesft.quirks import visualdl_booleans


def test_upstream_still_refuses_booleans(tmp_path: Path) -> None:
    """When this fails, visualdl takes booleans: remove the quirk and its use in training/arguments.py."""
    upstream = getattr(LogWriter.add_hparams, "upstream", LogWriter.add_hparams)
    with LogWriter(logdir=str(tmp_path)) as writer, pytest.raises(TypeError, match="boolean"):
        upstream(writer, {"lora": True}, [])


def test_booleans_are_taken_as_words(tmp_path: Path) -> None:
    visualdl_booleans.apply()
    once = LogWriter.add_hparams
    visualdl_booleans.apply()
    assert LogWriter.add_hparams is once
    with LogWriter(logdir=str(tmp_path)) as writer:
        writer.add_hparams({"lora": True, "rank": 8, "rate": 0.1, "name": "x"}, [])
    assert visualdl_booleans.without_booleans({"a": True, "b": False, "c": 1}) == {"a": "true", "b": "false", "c": 1}
