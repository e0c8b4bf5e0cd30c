import inspect

import paddle
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3

from paddlesft.quirks import sliced_weights_decay


def optimizer() -> paddle.optimizer.AdamW:
    weight = paddle.create_parameter([2], "float32")
    decaying = ["linear_0.w_0"]
    return paddle.optimizer.AdamW(parameters=[weight], apply_decay_param_fun=lambda name: name in decaying)


def test_upstream_still_renames_slices() -> None:
    """When this fails, slices keep their weights' names: remove the quirk and its use in training/trainer.py."""
    assert f'name="{sliced_weights_decay.PREFIX}" + param.name' in inspect.getsource(group_sharded_stage3)
    assert not optimizer()._apply_decay_param_fun("slice@linear_0.w_0")


def test_slices_decay_as_their_weights() -> None:
    fixed = optimizer()
    sliced_weights_decay.apply(fixed)
    decays = fixed._apply_decay_param_fun
    assert decays("slice@linear_0.w_0") and decays("linear_0.w_0")
    assert not decays("slice@linear_0.b_0") and not decays("linear_0.b_0")


def test_optimizers_that_let_everything_decay_stay() -> None:
    plain = paddle.optimizer.AdamW(parameters=[paddle.create_parameter([2], "float32")])
    sliced_weights_decay.apply(plain)
    assert plain._apply_decay_param_fun is None
    sliced_weights_decay.apply(paddle.optimizer.Momentum(parameters=plain._parameter_list))
