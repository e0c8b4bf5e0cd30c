"""PaddleSFT: check, train, merge, quantize, export, predict and serve language models on PaddlePaddle."""

from paddlesft.runtime import prepare

__version__ = "0.1.0"

prepare()
