"""Fewer processes, every divided axis still divided."""

from __future__ import annotations

import pytest

from paddlesft.errors import UserError
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.shrink_layout import shrink_degrees


@pytest.mark.parametrize(
    ("layout", "most", "small"),
    [
        (Layout(data=2, tensor=2), 8, {"data": 2, "pipeline": 1, "sharding": 1, "tensor": 2}),
        (Layout(data=2, pipeline=4, tensor=8), 8, {"data": 2, "pipeline": 2, "sharding": 1, "tensor": 2}),
        (Layout(sharding=8, stage=1), 4, {"data": 1, "pipeline": 1, "sharding": 4, "tensor": 1}),
        (Layout(sharding=6, stage=3), 5, {"data": 1, "pipeline": 1, "sharding": 3, "tensor": 1}),
        (Layout(pipeline=8, virtual=2), 3, {"data": 1, "pipeline": 3, "sharding": 1, "tensor": 1}),
        # four axes need sixteen: plain data parallelism goes first
        (
            Layout(data=2, pipeline=2, sharding=2, tensor=2, stage=1),
            8,
            {"data": 1, "pipeline": 2, "sharding": 2, "tensor": 2},
        ),
    ],
    ids=str,
)
def test_degrees(layout: Layout, most: int, small: dict[str, int]) -> None:
    degrees, lines = shrink_degrees(layout, most)
    assert degrees == small
    assert len(lines) == sum(layout.degree(axis) != degree for axis, degree in small.items())


def test_what_was_shortened_is_said() -> None:
    _, lines = shrink_degrees(Layout(data=4, tensor=8), 4)
    assert lines == ["data parallel degree: 4 -> 2", "tensor_parallel_degree: 8 -> 2"]
    _, lines = shrink_degrees(Layout(data=2, pipeline=2, sharding=2, tensor=2, stage=1), 8)
    assert lines == ["data parallel degree: 2 -> 1 (data parallelism beside the other axes is not rehearsed)"]


def test_too_few_processes_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(UserError) as caught:
        shrink_degrees(Layout(data=2, pipeline=4, tensor=8), 3)
    assert str(caught.value) == (
        "This layout takes 4 processes or more to rehearse (tensor_parallel_degree 8, pipeline_parallel_degree 4, data "
        "parallel 2, each axis that is divided kept at 2); allowed here: 3. Each takes about 0.8 GB of memory. If "
        "there is room: --max_processes 4."
    )
    with pytest.raises(UserError, match=r"kept at 2 or 3\); allowed here: 4\. .* --max_processes 6\."):
        shrink_degrees(Layout(pipeline=4, tensor=2, virtual=2), 4)
