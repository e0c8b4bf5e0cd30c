"""Configuration: typed keys, the strict loader, renamed keys, cross-field rules. Imports nothing heavy."""

from paddlesft.config.loader import load_arguments
from paddlesft.config.origins import Origin
from paddlesft.config.resolve import RUN_GROUPS, RunConfig, load_run_config

__all__ = ["RUN_GROUPS", "Origin", "RunConfig", "load_arguments", "load_run_config"]
