"""Waiting for a rank has an end, and the message names the rank; nothing changes where the backend has no business."""

from __future__ import annotations

from pathlib import Path

import paddle
import pytest

from paddlesft.parallel import gloo
from tests.parallel.ranks import Finished, launch

SECONDS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    directory = tmp_path_factory.mktemp("missing")
    done = launch(
        2, "missing_ranks.py", directory, logs=directory / "logs", seconds=90, PADDLESFT_RANK_TIMEOUT=str(SECONDS)
    )
    return done, directory


def message(run: tuple[Finished, Path], name: str) -> tuple[float, str]:
    file = run[1] / name
    assert file.is_file(), run[0].report()
    seconds, _, text = file.read_text(encoding="utf-8").partition("\n")
    return float(seconds), text


def test_rank_that_does_not_come_is_named_after_the_limit(run: tuple[Finished, Path]) -> None:
    seconds, text = message(run, "late-0")
    assert SECONDS <= seconds < SECONDS + 5
    assert text.startswith("Rank 0 has waited 2 s in all_reduce of group ")
    assert " of ranks 0, 1 for rank 1, which has not come." in text
    assert "PADDLESFT_RANK_TIMEOUT sets the limit in seconds" in text


def test_ranks_in_different_operations_are_told_so(run: tuple[Finished, Path]) -> None:
    _, text = message(run, "order-1")
    assert text.startswith("Rank 1 is in broadcast of group ")
    assert "rank 0 has come to all_reduce number 1: the ranks do not do the same things in the same order." in text


def test_rank_whose_process_has_ended_is_named_at_once(run: tuple[Finished, Path]) -> None:
    seconds, text = message(run, "dead-0")
    assert seconds < SECONDS + 5
    assert "for rank 1, whose process has ended. Its own log says why." in text


def test_the_rank_that_failed_first_is_shown_first(run: tuple[Finished, Path]) -> None:
    report = run[0].report()
    assert run[0].code != 0
    assert report.index("ValueError: the data of rank 1 is gone") < report.index("---- rank 0 ----")
    assert report.rstrip().splitlines()[-1].startswith("paddlesft.parallel.gloo.transport.MissingRank: Rank 0")


def test_process_that_is_alone_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    before = paddle._C_ops.c_identity, paddle.distributed.collective._new_process_group_impl
    assert not gloo.install() and not gloo.installed()
    assert (paddle._C_ops.c_identity, paddle.distributed.collective._new_process_group_impl) == before


def test_process_on_a_gpu_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    before = paddle._C_ops.c_identity, paddle.distributed.collective._new_process_group_impl
    assert not gloo.install() and not gloo.installed()
    assert (paddle._C_ops.c_identity, paddle.distributed.collective._new_process_group_impl) == before


def test_installing_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setattr(paddle, "get_device", lambda: "cpu")
    monkeypatch.setattr(paddle.distributed, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"has to be called before paddle\.distributed is initialised"):
        gloo.install()
