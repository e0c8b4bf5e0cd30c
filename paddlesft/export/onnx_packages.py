"""The packages that writing ONNX stands on, imported in one place."""

from __future__ import annotations

import warnings

from paddlesft.errors import EnvironmentProblem
from paddlesft.known_versions import EXTRAS, requirements

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx
        import paddle2onnx
except ImportError as error:
    raise EnvironmentProblem(
        f"Writing ONNX needs packages of the extra onnx: {error}. Run: pip install "
        + " ".join(f"'{one}'" for one in requirements(EXTRAS["onnx"]))
    ) from error

__all__ = ["onnx", "paddle2onnx"]
