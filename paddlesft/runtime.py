"""What has to be in place before paddle is imported. ``import paddlesft`` calls ``prepare``; it costs microseconds."""

from __future__ import annotations

import os
import warnings

from paddlesft.quirks import (
    aistudio_hub,
    garbage_of_imports,
    mkl_on_amd,
    swiglu_warning,
    thread_default,
    thread_warning,
)


def prepare() -> None:
    """Set the process up for paddle. Values that the user has set are left alone."""
    mkl_on_amd.apply()
    thread_default.apply()
    thread_warning.apply()
    garbage_of_imports.apply()
    aistudio_hub.apply()
    swiglu_warning.apply()
    # Spinning worker threads starve the other ranks when several processes share the cores.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # paddle's C++ side announces its libraries on stderr, in the middle of progress lines; warnings still come.
    os.environ.setdefault("GLOG_minloglevel", "1")
    # paddle's extension builder and jieba warn about tools that are not used here.
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message="Setuptools is replacing distutils")
