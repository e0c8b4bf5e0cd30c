"""What layers of PaddleNLP's models really keep for the backward pass, on a CPU, against the estimate."""

from __future__ import annotations

import pytest

from paddlesft.models.families import family_named
from paddlesft.parallel.estimate import layer_activations
from paddlesft.parallel.layout import Layout
from paddlesft.parallel.workload import Workload
from tests.models.test_tensor_plans import tiny_config

ROWS, LENGTH = 2, 64


def kept_bytes(name: str, layers: int) -> int:
    """Bytes of all tensors that a forward pass saves, weights aside, each memory once."""
    import paddle
    import paddlenlp.transformers as zoo

    family = family_named(name)
    config = tiny_config(family, **{family.num_layers_key: layers})
    model = getattr(zoo, family.causal_lm)(getattr(zoo, family.config_class).from_dict(config))
    model.train()
    weights = {weight.data_ptr() for weight in model.parameters()}
    held, sizes = [], {}

    def pack(tensor: paddle.Tensor) -> paddle.Tensor:
        held.append(tensor)  # so that no memory is used twice while counting
        if tensor.data_ptr() not in weights:
            size = tensor.size * tensor.element_size()
            sizes[tensor.data_ptr()] = max(sizes.get(tensor.data_ptr(), 0), size)
        return tensor

    with paddle.autograd.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(paddle.randint(5, 400, [ROWS, LENGTH]))
    return sum(sizes.values())


@pytest.mark.parametrize(("name", "most"), [("gpt", 1.1), ("opt", 1.1), ("llama", 1.5), ("bloom", 2.3)])
def test_a_layer_keeps_about_what_is_estimated(name: str, most: float) -> None:
    measured = (kept_bytes(name, 4) - kept_bytes(name, 2)) / 2
    family = family_named(name)
    plan = family.plan(tiny_config(family))
    estimate = layer_activations(Layout(micro_batch=ROWS), plan, Workload(length=LENGTH))
    assert 0.85 < measured / estimate < most  # kernels that are not fused keep more; see docs/parallel.md
