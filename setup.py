"""Packaging of PaddleSFT.

The ranges are in paddlesft/known_versions.py; constraints.txt holds the exact set they were tested in.
"""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "paddlesft/__init__.py").read_text(encoding="utf-8")).group(1)
KNOWN = runpy.run_path(str(HERE / "paddlesft/known_versions.py"))

setup(
    name="paddlesft",
    version=VERSION,
    description="From a base language model to a fine-tuned, served one, on PaddlePaddle",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=KNOWN["PYTHON_ALLOWED"],
    packages=find_packages(include=["paddlesft", "paddlesft.*"]),
    package_data={"paddlesft": ["**/*.jinja", "**/*.json", "**/*.jsonl", "**/*.yaml"]},
    install_requires=KNOWN["requirements"](KNOWN["CORE"]),
    extras_require={
        # paddlepaddle-gpu 3.x is published in PaddlePaddle's own package index, where pip does not look by itself:
        # docs/install.md has the two commands. The name exists so that `.[gpu]` is no error.
        "gpu": [],
        **{extra: KNOWN["requirements"](parts) for extra, parts in KNOWN["EXTRAS"].items()},
    },
    entry_points={"console_scripts": ["paddlesft = paddlesft.cli.main:main"]},
)
