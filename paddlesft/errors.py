"""Errors a user can act on.

Every error that bad input can cause derives from ``UserError``: the command line prints its text without a traceback
and exits with code 2. The text names what was found, what is allowed, where it was found and what to do next.
"""


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
