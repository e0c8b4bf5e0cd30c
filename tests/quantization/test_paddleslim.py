"""PaddleSlim, where it is missing; what it computes is tested where it is used."""

from __future__ import annotations

import runpy
import sys

import pytest

from paddlesft.errors import EnvironmentProblem
from paddlesft.quantization import paddleslim


@pytest.mark.parametrize("package", ["paddleslim.quant.advanced", "paddleslim.quant.observers.abs_max"])
def test_a_missing_package_is_named_with_what_to_run(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem) as caught:
        runpy.run_path(paddleslim.__file__)
    assert str(caught.value).startswith("Quantizing needs packages of the extra quant: ")
    assert str(caught.value).endswith("Run: pip install 'paddleslim==2.6.0' 'decorator>=5'")
