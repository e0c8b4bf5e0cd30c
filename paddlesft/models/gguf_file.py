"""An open GGUF file: metadata and tensors by name.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package reads and dequantises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddlesft.errors import EnvironmentProblem, ModelDirectoryError

# what to do about a file that cannot be imported: it is damaged, or it holds what no model here has
AGAIN = "Download or copy it again, or use the model's Hugging Face directory instead."
INSTEAD = "Use the model's Hugging Face directory instead."


class GGUFFile:
    """An open GGUF file: metadata by key, tensors by name, errors that name the file."""

    def __init__(self, path: str | Path) -> None:
        """Open and check a file.

        Raises:
            EnvironmentProblem: the ``gguf`` package is not installed.
            ModelDirectoryError: there is no such file, it is no GGUF, or it is damaged.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelDirectoryError(f"{self.path} is not a file. Give the path of a .gguf file.")
        with self.path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelDirectoryError(f"{self.path} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'.")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise EnvironmentProblem("Reading GGUF files needs the gguf package. Run: pip install gguf") from error
        try:
            reader = GGUFReader(self.path)
            self.fields = {key: field.contents() for key, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the reader has no errors of its own: whatever numpy meets in a damaged file
            raise ModelDirectoryError(
                f"{self.path} is damaged or incomplete ({type(error).__name__}: {error}). Download or copy it again."
            ) from error
        self.architecture = self.fields.get("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own keys (``context_length`` for ``llama.context_length``).

        Raises:
            ModelDirectoryError: the file gives a list, one value for each layer.
        """
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            raise ModelDirectoryError(
                f"{self.path}: {self.architecture}.{key} differs from layer to layer, which no model here does. "
                f"{INSTEAD}"
            )
        return value

    def require(self, key: str) -> Any:
        """Return a value of the architecture's own keys, or raise naming the key that the file lacks."""
        value = self.get(key)
        if value is None:
            raise ModelDirectoryError(
                f"{self.path} lacks the key {self.architecture}.{key}; the model is not complete. {AGAIN}"
            )
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape in torch's orientation."""
        return tuple(int(n) for n in reversed(self.tensors[name].shape))

    def stored_type(self, name: str) -> str:
        """Return how a tensor is stored: F32, F16, BF16, or the name of a quantisation."""
        return self.tensors[name].tensor_type.name

    def array(self, name: str) -> np.ndarray:
        """Return a tensor dequantised to float32, in torch's orientation."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ModelDirectoryError(
                f"{self.path}: tensor {name} is stored as {tensor.tensor_type.name}, which the gguf package cannot "
                "dequantise. Use a file of another quantisation (Q4_K_M, Q8_0, F16 ...)."
            ) from error
