"""Errors a user can act on.

Every error that bad input can cause derives from ``UserError``: the command line prints its text without a traceback
and exits with code 2. The text names what was found, what is allowed, where it was found and what to do next.
"""


from __future__ import annotations

import errno


class PaddleSFTError(Exception):
    """Base class of all errors raised on purpose by this package."""

    exit_code = 1


class UserError(PaddleSFTError):
    """Something outside the program has to change: a config, a file, an argument, the environment."""

    exit_code = 2


class ConfigError(UserError):
    """One or more keys of a config file or of the command line are wrong."""


class DataError(UserError):
    """Rows of a data set cannot be used."""


class ModelDirectoryError(UserError):
    """A model or adapter directory is missing, incomplete or does not fit."""


class CheckpointError(UserError):
    """A checkpoint cannot be resumed from or written."""


class EnvironmentProblem(UserError):
    """A package is missing or has a version that does not work."""


_CURES = {
    errno.ENOSPC: "Free some space there, or choose another place.",
    errno.EDQUOT: "Free some space there, or choose another place.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EACCES: "Change its permissions, or choose another place.",
    errno.EPERM: "Change its permissions, or choose another place.",
    errno.EEXIST: "A file stands where a directory is needed: choose another place.",
    errno.ENOTDIR: "A file stands where a directory is needed: choose another place.",
}


class FileProblem(UserError):
    """The operating system refuses a file or directory.

    Args:
        error: what was raised.
        doing: what was tried, for the message.
    """

    def __init__(self, error: OSError, doing: str = "Cannot use") -> None:
        place = f" {error.filename}" if error.filename is not None else " a file"
        reason = error.strerror or str(error) or type(error).__name__
        cure = _CURES.get(error.errno, "Check the path and its permissions.")
        super().__init__(f"{doing}{place}: {reason}. {cure}")
