"""What the operating system refuses is said in words a user can act on."""

from __future__ import annotations

import errno
import os

import pytest

from paddlesft.errors import FileProblem


@pytest.mark.parametrize(
    "code, cure",
    [
        (errno.ENOSPC, "Free some space there, or choose another place."),
        (errno.EROFS, "Choose a place that can be written to."),
        (errno.EACCES, "Change its permissions, or choose another place."),
        (errno.ENOTDIR, "A file stands where a directory is needed: choose another place."),
        (errno.ENOENT, "Check the path and its permissions."),
    ],
)
def test_a_refused_file_is_named_with_the_reason_and_what_to_do(code: int, cure: str) -> None:
    problem = FileProblem(OSError(code, os.strerror(code), "数据/out put.json"), "Cannot write to")
    assert str(problem) == f"Cannot write to 数据/out put.json: {os.strerror(code)}. {cure}"
    assert problem.exit_code == 2


def test_an_error_without_a_name_is_said_too() -> None:
    assert str(FileProblem(OSError(errno.ENOSPC, "No space left on device"))) == (
        "Cannot use a file: No space left on device. Free some space there, or choose another place."
    )
