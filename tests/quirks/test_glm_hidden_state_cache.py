"""What PaddleNLP's GLM caches, and that what stands in for its projection changes nothing else."""

from __future__ import annotations

import numpy as np
import paddle

from paddlesft.models.decoders import decoder_of
from paddlesft.quirks.glm_hidden_state_cache import CachingProjection, caching_projection
from tests.models.decoders.blank_filling_models import ROWS, small

MASK = paddle.ones([1, 1, 1, 1])


def test_paddlenlp_still_caches_hidden_states() -> None:
    """When this fails, GLM caches keys and values by itself: drop the quirk."""
    model = small("glm")
    output = model(paddle.to_tensor([[5]]), attention_mask=MASK, return_dict=True)
    shapes = [list(entry.shape) for entry in output.past_key_values]
    assert shapes == [[1, 1, model.config.hidden_size]] * (model.config.num_layers + 1)


def test_a_projection_is_replaced_once() -> None:
    attention = small("glm").glm.transformer.layers[0].attention
    first = caching_projection(attention)
    assert isinstance(first, CachingProjection) and caching_projection(attention) is first
    assert not isinstance(first.project, CachingProjection)


def test_the_models_own_forward_pass_stays_as_it_was() -> None:
    wanted, model = (small("glm") for _ in range(2))
    decoder = decoder_of(model)
    with paddle.no_grad():
        decoder.run(paddle.to_tensor([ROWS[0]]), use_cache=True)
        found = [one(paddle.to_tensor([[5]]), attention_mask=MASK, return_dict=True).logits for one in (model, wanted)]
    np.testing.assert_array_equal(found[0].numpy(), found[1].numpy())
    kept = [caching_projection(layer.attention) for layer in model.glm.transformer.layers]
    assert all(projection.past is None and projection.newest is None for projection in kept), "nothing stays in memory"
