"""The quirk is still needed, and a Gemma that divides its tokens embeds them first."""

from __future__ import annotations

from typing import Any

import pytest

from paddlesft.quirks.gemma_sequence_parallel import embed_first
from tests.tiny_families import FAMILY_FIXTURES


def tiny_gemma(sequence_parallel: bool) -> Any:
    from paddlenlp.transformers import GemmaConfig, GemmaForCausalLM

    model = GemmaForCausalLM(GemmaConfig(**FAMILY_FIXTURES["gemma"].sizes, vocab_size=64))
    model.config.sequence_parallel = sequence_parallel  # now: a config of one process refuses it
    model.gemma.sequence_parallel = sequence_parallel
    return model


def test_upstream_divides_embeddings_it_does_not_have() -> None:
    import paddle

    model = tiny_gemma(sequence_parallel=True)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
        model.gemma(paddle.to_tensor([[1, 2, 3, 4]]))


def test_token_ids_are_embedded_before_the_decoder_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import paddle
    from paddlenlp.transformers.gemma import modeling

    class Reached(Exception):
        """The embeddings are about to be divided."""

    class Scatter:
        @staticmethod
        def apply(tokens: Any) -> Any:
            raise Reached(tokens)

    monkeypatch.setattr(modeling, "ScatterOp", Scatter)
    model = tiny_gemma(sequence_parallel=True)
    embed_first(model)
    ids = paddle.to_tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with pytest.raises(Reached) as reached:
        model.gemma(ids, use_cache=False)
    assert bool((reached.value.args[0] == model.gemma.embed_tokens(ids).reshape([8, -1])).all())


def test_other_models_are_left_alone() -> None:
    model = tiny_gemma(sequence_parallel=False)
    before = model.gemma.forward
    embed_first(model)
    assert model.gemma.forward == before
