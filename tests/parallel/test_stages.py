"""Layers are dealt to stages as Paddle deals them."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paddlesft.parallel.stages import stage_layers


def paddle_stages(layers: int, stages: int, virtual: int) -> list[list[range]]:
    """What Paddle's own segmentation makes of embedding, layers, norm and head."""
    from paddle.distributed.fleet.meta_parallel.parallel_layers.pp_layers import SegmentLayers

    parts = [type(name, (), {}) for name in ("Embedding", *["DecoderLayer"] * layers, "Norm", "Head")]
    even = layers % stages == 0  # as PaddleNLP's pipeline classes choose
    method = "layer:DecoderLayer" if even else "uniform"
    bounds = SegmentLayers(parts, stages, method, virtual if virtual > 1 else None).do_segment()
    chunks = [
        [i - 1 for i in range(a, b) if 1 <= i <= layers]
        for a, b in zip(bounds, bounds[1:])  # noqa: RUF007
    ]
    return [[range(c[0], c[-1] + 1) if c else range(0) for c in chunks[stage::stages]] for stage in range(stages)]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 3))
def test_stages_hold_the_layers_that_paddle_gives_them(layers: int, stages: int, virtual: int) -> None:
    if virtual > 1 and layers % (stages * virtual):
        with pytest.raises(ValueError, match=f"{layers} layers do not divide into {stages} stages of {virtual} chunks"):
            stage_layers(layers, stages, virtual)
        return
    assume(layers + 3 >= stages)  # Paddle refuses fewer parts than stages
    found = stage_layers(layers, stages, virtual)
    assert sorted(chain.from_iterable(chain.from_iterable(found))) == list(range(layers))
    expected = paddle_stages(layers, stages, virtual)
    assert [[list(c) for c in s] for s in found] == [[list(c) for c in s] for s in expected]
