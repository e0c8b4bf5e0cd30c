import paddle
import pytest

from paddlesft.models.hooked_call import call_with_hooks, forward_replaced


def layer_with_hooks() -> tuple[paddle.nn.Linear, list[str]]:
    layer, seen = paddle.nn.Linear(2, 3), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_post_hook(lambda *_: seen.append("after"))
    return layer, seen


def test_hooks_run_around_the_computation() -> None:
    layer, seen = layer_with_hooks()

    def transposed(x: paddle.Tensor) -> paddle.Tensor:
        seen.append("compute")
        return paddle.matmul(x, layer.weight, transpose_y=True)

    x = paddle.ones([1, 3])
    assert (call_with_hooks(layer, transposed, x).numpy() == (x @ layer.weight.T).numpy()).all()
    assert seen == ["before", "compute", "after"]
    assert layer(paddle.ones([1, 2])).shape == [1, 3]  # its own forward pass again


def test_an_error_leaves_the_layer_as_it_was() -> None:
    layer, _ = layer_with_hooks()
    with pytest.raises(ZeroDivisionError), forward_replaced(layer, lambda: 1 / 0):
        layer()
    assert "forward" not in vars(layer) and layer(paddle.ones([1, 2])).shape == [1, 3]
