"""Ranks, coordinates, groups and shares of a layout, compared with Paddle's own topology."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlesft.parallel.layout import AXES, ORDERS, PADDLE_NAMES, Layout

degree = st.sampled_from([1, 2, 3, 4])
layouts = st.builds(
    Layout,
    data=degree, pipeline=degree, sharding=degree, tensor=degree, order=st.sampled_from(sorted(ORDERS)),
    micro_batch=st.integers(1, 3), accumulation=st.integers(1, 3), layers=st.just(12), heads=st.just(12),
    kv_heads=st.just(12), vocab=st.just(144), stage=st.integers(1, 3),
)  # fmt: skip


@given(layouts)
def test_every_rank_has_one_place_and_every_place_one_rank(layout: Layout) -> None:
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len({tuple(place.items()) for place in places}) == layout.world_size
    assert [layout.rank_at(**place) for place in places] == list(range(layout.world_size))
    assert all(0 <= place[axis] < layout.degree(axis) for place in places for axis in AXES)


@given(layouts, st.sampled_from(AXES))
def test_the_groups_of_an_axis_part_the_ranks(layout: Layout, axis: str) -> None:
    groups = layout.groups(axis)
    assert sorted(chain.from_iterable(groups)) == list(range(layout.world_size))
    for group in groups:
        assert len(group) == layout.degree(axis)
        places = [layout.coordinates(rank) for rank in group]
        assert [place[axis] for place in places] == list(range(layout.degree(axis)))
        assert len({tuple(v for k, v in place.items() if k != axis) for place in places}) == 1


@settings(deadline=None)
@given(layouts)
def test_coordinates_and_groups_are_those_of_paddle(layout: Layout) -> None:
    from paddle.distributed.fleet.base.topology import CommunicateTopology

    order = ORDERS[layout.order]
    names = [PADDLE_NAMES[axis] for axis in order]
    topology = CommunicateTopology(names, [layout.degree(axis) for axis in order])
    for rank in range(layout.world_size):
        assert topology.get_coord(rank)._asdict() == {
            PADDLE_NAMES[axis]: place for axis, place in layout.coordinates(rank).items()
        }
    for axis in AXES:
        assert layout.groups(axis) == topology.get_comm_list(PADDLE_NAMES[axis])


def test_the_orders_are_those_that_paddlenlp_asks_fleet_for() -> None:
    import inspect

    from paddlenlp.trainer import TrainingArguments

    source = inspect.getsource(TrainingArguments.__post_init__)
    fleet = {"data": "dp", "pipeline": "pp", "sharding": "sharding", "tensor": "mp"}
    for order, axes in ORDERS.items():
        names = [fleet[axis] for axis in axes]
        names.insert(-1, "sep")  # always there; of degree 1 in every layout
        asked = "order = [" + ", ".join(f'"{name}"' for name in names) + "]"
        assert asked in source, order


@given(layouts)
def test_ranks_share_the_rows_of_a_step_as_the_sampler_deals_them(layout: Layout) -> None:
    from paddlesft.training.sampling_order import StepSampler

    for rank in range(layout.world_size):
        sampler = StepSampler(
            layout.global_batch, layout.micro_batch, layout.accumulation, seed=0,
            num_replicas=layout.data_ranks, rank=layout.data_rank(rank), shuffle=False,
        )  # fmt: skip
        assert next(iter(sampler)) == list(chain.from_iterable(layout.batch_rows(rank)))


def test_a_table_says_which_rank_holds_what() -> None:
    layout = Layout(
        pipeline=2,
        sharding=2,
        tensor=2,
        stage=1,
        micro_batch=2,
        accumulation=4,
        layers=6,
        heads=8,
        kv_heads=2,
        vocab=100,
    )
    first, *_, last = layout.table()
    assert (first.rank, first.place) == (0, "pipeline 0, sharding 0, tensor 0")
    assert first.layers == "embedding, 0-2"
    assert first.heads == "query 0-3, key/value 0"
    assert first.vocabulary == "0-49"
    assert first.state == "optimizer state: part 0 of 2"
    assert first.batch == "0-1, 4-5, 8-9, ..."
    assert (last.rank, last.place) == (7, "pipeline 1, sharding 1, tensor 1")
    assert last.layers == "3-5, norm, head"
    assert last.heads == "query 4-7, key/value 1"
    assert last.vocabulary == "50-99"
    assert last.state == "optimizer state: part 1 of 2"
    assert last.batch == "2-3, 6-7, 10-11, ..."


def test_a_table_of_one_process_says_that_it_holds_everything() -> None:
    (row,) = Layout(layers=2, heads=4, kv_heads=4, vocab=10).table()
    assert (row.place, row.layers, row.heads) == ("alone", "embedding, 0-1, norm, head", "query 0-3")
    assert (row.vocabulary, row.state, row.batch) == ("0-9", "all", "0")


def test_a_middle_stage_has_no_vocabulary_and_virtual_stages_have_their_chunks() -> None:
    layout = Layout(pipeline=3, virtual=2, layers=12, vocab=10)
    middle = layout.table(range(1, 2))[0]
    assert (middle.layers, middle.vocabulary) == ("2-3, 8-9", "-")
    assert layout.table(range(0, 1))[0].layers == "embedding, 0-1, 6-7"


@pytest.mark.parametrize(
    ("stage", "shared"),
    [(2, "optimizer state, gradients: part 1 of 2"), (3, "optimizer state, gradients, weights: part 1 of 2")],
)
def test_the_stage_of_sharding_says_what_is_shared(stage: int, shared: str) -> None:
    assert Layout(sharding=2, stage=stage).table()[1].state == shared


def test_a_vocabulary_that_is_not_divided_is_whole_on_every_rank() -> None:
    rows = Layout(tensor=2, heads=2, kv_heads=2, vocab=9, whole_vocabulary=True).table()
    assert [row.vocabulary for row in rows] == ["0-8", "0-8"]


def test_a_rank_beyond_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 4 is not among the ranks 0 to 3"):
        Layout(data=4).coordinates(4)


def test_steps_of_an_epoch_count_a_last_smaller_one() -> None:
    layout = Layout(data=2, micro_batch=2, accumulation=2)
    assert layout.global_batch == 8
    assert [layout.steps_per_epoch(rows) for rows in (1, 8, 9, 16)] == [1, 1, 2, 2]


def test_a_layout_is_described_by_the_keys_of_a_config() -> None:
    assert str(Layout()) == "one process"
    assert str(Layout(data=2)) == "data parallel 2"
    assert str(Layout(tensor=2, sequence_parallel=True, pipeline=3, virtual=2, sharding=4, stage=1, data=2)) == (
        "tensor_parallel_degree 2, sequence_parallel, pipeline_parallel_degree 3, virtual_pp_degree 2, sharding "
        "stage1, sharding_parallel_degree 4, data parallel 2"
    )
