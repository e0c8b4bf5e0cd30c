"""aistudio-sdk 0.3 removed ``aistudio_sdk.hub.download``, which paddlenlp 3.0.0b4 imports at module level.

With a newer or missing aistudio-sdk, ``import paddlenlp`` dies with an ImportError although nothing of AI Studio is
wanted. A small stand-in is registered instead; only calling it raises, with what to install. What counts is the module
that Python would import, not the metadata of the installed package: both can differ, and nothing is imported to look.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import logging
import re
import sys
import types
from pathlib import Path

from paddlesft.errors import EnvironmentProblem

WORKING = "0.2.6"

_DEFINES_DOWNLOAD = re.compile(r"^(def download\(|download\s*=|from [\w.]+ import [^#\n]*\bdownload\b)", re.MULTILINE)

logger = logging.getLogger("paddlesft")


def installed_version() -> str | None:
    """Return the version of the installed aistudio-sdk, or None when there is none."""
    try:
        return importlib.metadata.version("aistudio-sdk")
    except importlib.metadata.PackageNotFoundError:
        return None


def works(search_path: list[str] | None = None) -> bool:
    """Tell whether ``from aistudio_sdk.hub import download`` would succeed, without importing anything.

    Args:
        search_path: directories to look in; those of ``sys.path`` when None.

    Returns:
        False when there is no ``aistudio_sdk`` package or its ``hub`` module has no ``download``.
    """
    spec = importlib.machinery.PathFinder.find_spec("aistudio_sdk", search_path)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        hub = Path(directory) / "hub.py"
        if hub.is_file():
            return bool(_DEFINES_DOWNLOAD.search(hub.read_text(encoding="utf-8", errors="replace")))
    return False


def is_stand_in() -> bool:
    """Tell whether this process runs with the stand-in instead of the real package."""
    return getattr(sys.modules.get("aistudio_sdk"), "paddlesft_stand_in", False)


def explanation(version: str | None) -> str:
    """Say what is wrong with this version and what to do about it.

    Args:
        version: the version found, or None when the package is not installed.
    """
    found = f"aistudio-sdk {version} has no hub.download" if version else "aistudio-sdk is not installed"
    return (
        f"{found}: downloads from AI Studio are off, everything else works (paddlenlp imports it all the same, so "
        f"a stand-in takes its place). To get them back: pip install 'aistudio-sdk=={WORKING}'."
    )


def apply() -> bool:
    """Register the stand-in where the installed package does not work, and log why.

    Returns:
        Whether the stand-in was registered by this call.
    """
    if "aistudio_sdk" in sys.modules or works():
        return False
    why = explanation(installed_version())

    def unavailable(*args: object, **kwargs: object) -> None:
        raise EnvironmentProblem(why)

    package = types.ModuleType("aistudio_sdk", why)
    hub = types.ModuleType("aistudio_sdk.hub", why)
    for name in ("download", "create_repo", "upload", "file_exists"):
        setattr(hub, name, unavailable)
    package.hub = hub
    package.paddlesft_stand_in = True
    package.__path__ = []
    sys.modules["aistudio_sdk"] = package
    sys.modules["aistudio_sdk.hub"] = hub
    logger.warning(why)
    return True
