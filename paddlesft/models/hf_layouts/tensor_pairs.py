"""Tensors under Hugging Face's names and under Paddle's, with what is done to them on the way.

Nothing is computed: tensors are renamed, transposed, and cut apart or joined, so that both directions are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlesft.models.weights import NewTensor


@dataclass(frozen=True)
class TensorPair:
    """One tensor in both layouts.

    Attributes:
        hf: its name in a Hugging Face directory.
        paddle: its name in a Paddle directory.
        transposed: torch keeps Linear weights as [out, in], Paddle as [in, out].
        part: which of ``parts`` equal pieces along the last axis of the Hugging Face tensor; None: the whole.
        parts: how many pieces there are.
    """

    hf: str
    paddle: str
    transposed: bool = False
    part: int | None = None
    parts: int = 3


def upstream_pairs(causal_lm: str, architecture: str, config: Mapping[str, Any]) -> list[TensorPair]:
    """List the tensors of a model by paddlenlp's own mapping.

    Args:
        causal_lm: the model's class in ``paddlenlp.transformers``.
        architecture: its class in transformers.
        config: content of a PaddleNLP config.json.

    Returns:
        A pair for every tensor of the mapping.
    """
    import paddlenlp.transformers as zoo

    model_class = getattr(zoo, causal_lm)
    full = model_class.config_class.from_dict({**config, "architectures": [architecture]})
    pairs = []
    for mapping in model_class._get_name_mappings(full):
        if mapping.action not in (None, "transpose", "split"):
            raise ValueError(f"{causal_lm}: {mapping.source_name} is mapped by {mapping.action!r}, unknown here")
        part = mapping.index if mapping.action == "split" else None  # else the index only counts the mappings
        pairs.append(TensorPair(mapping.source_name, mapping.target_name, mapping.should_transpose(), part))
    return pairs


def paddle_tensor(pair: TensorPair, tensor: NewTensor) -> NewTensor:
    """Make Paddle's tensor of a pair from Hugging Face's, lazily."""
    shape = tensor.shape
    if pair.part is not None:
        width = shape[-1] // pair.parts
        begin = pair.part * width
        return NewTensor(tensor.dtype, (*shape[:-1], width), lambda: tensor.make()[..., begin : begin + width])
    if pair.transposed:
        return NewTensor(tensor.dtype, shape[::-1], lambda: tensor.make().T)
    return tensor


def hugging_face_tensors(pairs: Iterable[TensorPair], stored: Mapping[str, NewTensor]) -> dict[str, NewTensor]:
    """Make Hugging Face's tensors from Paddle's, lazily; the pieces of one tensor are joined.

    Args:
        pairs: all pairs of the model.
        stored: Paddle's tensors by name.
    """
    out: dict[str, NewTensor] = {}
    pieces: dict[str, list[NewTensor]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.part or 0):
        tensor = stored[pair.paddle]
        if pair.part is not None:
            pieces.setdefault(pair.hf, []).append(tensor)
        elif pair.transposed:
            out[pair.hf] = NewTensor(tensor.dtype, tensor.shape[::-1], lambda t=tensor: t.make().T)
        else:
            out[pair.hf] = tensor
    for name, parts in pieces.items():
        shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        out[name] = NewTensor(
            parts[0].dtype, shape, lambda p=parts: np.concatenate([part.make() for part in p], axis=-1)
        )
    return out
