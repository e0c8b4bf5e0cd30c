"""PaddleNLP's OPT cannot recompute layers: ``recompute: true`` has no effect on it, without a word.

Seen with paddlenlp 3.0.0b4: no layer of ``OPTModel`` has the attribute ``enable_recompute``, which the trainer looks
for. The recomputing itself is done where the layers are called, ``models/decoders/layer_by_layer.py``.
"""

from __future__ import annotations

from typing import Any


def offer_recompute(model: Any) -> None:
    """Give the decoder of an OPT model the switch that the trainer turns on."""
    if not hasattr(model.opt.decoder, "enable_recompute"):
        model.opt.decoder.enable_recompute = False
