"""Which layers stand in which stage of a pipeline, as Paddle's ``SegmentLayers`` deals them out."""

from __future__ import annotations

from itertools import pairwise

# PaddleNLP's pipeline classes line up: the embedding, the decoder layers, the last norm, the head.
IN_FRONT, BEHIND = 1, 2


def stage_layers(layers: int, stages: int, virtual: int = 1) -> list[list[range]]:
    """Return the decoder layers of every stage.

    Layers that divide evenly are dealt evenly, with embedding, norm and head on top; others are dealt so that the
    number of parts is even, embedding, norm and head among them (``SegmentLayers.uniform``).

    Args:
        layers: decoder layers of the model.
        stages: pipeline degree.
        virtual: chunks of each stage (interleaved schedule, arXiv:2104.04473).

    Returns:
        For each stage its chunks, in the order of the forward pass.

    Raises:
        ValueError: ``virtual`` chunks of ``stages`` cannot be equal, which Paddle asks of them.
    """
    if layers % (stages * virtual) == 0:
        size = layers // (stages * virtual)
        bounds = [size * i for i in range(stages * virtual + 1)]
    elif virtual > 1:
        raise ValueError(f"{layers} layers do not divide into {stages} stages of {virtual} chunks")
    else:
        parts = layers + IN_FRONT + BEHIND
        size, extra = divmod(parts, stages)
        ends = [0]
        for i in range(1, stages + 1):
            ends.append(ends[-1] + size + (i > stages - extra))
        bounds = [min(max(end - IN_FRONT, 0), layers) for end in ends]
    chunks = [range(a, b) for a, b in pairwise(bounds)]
    return [chunks[stage::stages] for stage in range(stages)]
