"""aistudio-sdk 0.3 removed ``aistudio_sdk.hub.download``, which paddlenlp 3.0.0b4 imports at module level.

With a newer or missing aistudio-sdk, ``import paddlenlp`` dies with an ImportError although nothing of AI Studio is
wanted. A small stand-in is registered instead; only calling it raises, with what to install.
"""

from __future__ import annotations

import importlib.metadata
import sys
import types

from paddlesft.errors import EnvironmentProblem

WORKING = "0.2.6"


def installed_version() -> str | None:
    """Return the version of the installed aistudio-sdk, or None when there is none."""
    try:
        return importlib.metadata.version("aistudio-sdk")
    except importlib.metadata.PackageNotFoundError:
        return None


def works(version: str | None) -> bool:
    """Tell whether paddlenlp can import ``aistudio_sdk.hub.download`` from this version (it can below 0.3)."""
    if version is None:
        return False
    major, minor = ([*version.split("."), "0"])[:2]
    return (int(major), int(minor)) < (0, 3)


def explanation(version: str | None) -> str:
    """Say what is wrong with this version and what to do about it."""
    found = f"aistudio-sdk {version} is installed" if version else "aistudio-sdk is not installed"
    return (
        f"{found}; downloads from AI Studio need {WORKING} (0.3 removed hub.download). Everything else works. "
        f"To download from AI Studio: pip install 'aistudio-sdk=={WORKING}'."
    )


def apply() -> bool:
    """Register the stand-in where the installed package does not work.

    Returns:
        Whether the stand-in was registered by this call.
    """
    version = installed_version()
    if works(version) or "aistudio_sdk" in sys.modules:
        return False

    def unavailable(*args: object, **kwargs: object) -> None:
        raise EnvironmentProblem(explanation(version))

    package = types.ModuleType("aistudio_sdk", explanation(version))
    hub = types.ModuleType("aistudio_sdk.hub", explanation(version))
    for name in ("download", "create_repo", "upload", "file_exists"):
        setattr(hub, name, unavailable)
    package.hub = hub
    package.__path__ = []
    sys.modules["aistudio_sdk"] = package
    sys.modules["aistudio_sdk.hub"] = hub
    return True
