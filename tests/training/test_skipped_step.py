from types import MethodType

import paddle

from paddlesft.training.skipped_step import SkippedStep


def optimizer_with_moments() -> tuple[paddle.optimizer.AdamW, paddle.nn.Linear]:
    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.AdamW(0.1, parameters=layer.parameters(), weight_decay=0.5)
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    return optimizer, layer


def test_moments_and_weight_decay_wait() -> None:
    optimizer, layer = optimizer_with_moments()
    before = layer.weight.numpy()
    skipped = SkippedStep(optimizer)
    optimizer.step()
    assert (layer.weight.numpy() == before).all()
    skipped.end()
    optimizer.clear_grad()  # to zeros, with which the optimizer would have moved the weights
    optimizer.step()
    assert (layer.weight.numpy() != before).all()


def test_a_step_that_hides_the_class_s_own_comes_back() -> None:
    """As Paddle's sharding puts one there."""
    optimizer, _ = optimizer_with_moments()
    taken = []
    optimizer.step = MethodType(lambda self: taken.append(self), optimizer)
    skipped = SkippedStep(optimizer)
    optimizer.step()
    optimizer._step([])  # the name in PaddleNLP's loop for divided runs
    assert taken == []
    skipped.end()
    optimizer.step()
    assert taken == [optimizer] and "_step" not in vars(optimizer)
