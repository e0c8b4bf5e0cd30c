"""Operations and bytes, against sums done by hand and against products that a forward pass really makes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlesft.inference.decoder_cost import bytes_looked_up, decoder_cost
from paddlesft.inference.eager import EagerRunner
from paddlesft.models import load_model

# Llama 2 7B: 32 layers of 4 x 4096^2 and 3 x 4096 x 11008, a head of 4096 x 32000
LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def test_a_llama_by_hand() -> None:
    cost = decoder_cost(LLAMA_7B)
    layers, head = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008), 4096 * 32000
    assert (cost.layer_parameters, cost.head_parameters) == (layers, head) == (6_476_005_376, 131_072_000)
    # every token sees itself and those before it; scores and mixture take 2 x 4096 operations per layer and token seen
    assert cost.prefill_flops(2, 3) == 2 * (3 * 2 * layers + 2 * head + (1 + 2 + 3) * 32 * 2 * 2 * 4096)
    assert cost.step_flops(5, 10) == 5 * (2 * (layers + head) + 10 * 32 * 2 * 2 * 4096)
    assert cost.cache_bytes(3, 7, 2) == 3 * 7 * 2 * 32 * 4096 * 2
    assert bytes_looked_up(LLAMA_7B, 2) == 2 * head
    assert bytes_looked_up({**LLAMA_7B, "tie_word_embeddings": True}, 2) == 0


def test_adapters_and_prefixes_cost_too() -> None:
    plain, tuned = decoder_cost(LLAMA_7B), decoder_cost(LLAMA_7B, prefix=4, adapter_parameters=1000)
    assert tuned.step_flops(1, 1) - plain.step_flops(1, 1) == 2 * 1000 + 4 * 32 * 2 * 2 * 4096
    assert tuned.prefill_flops(1, 6) - plain.prefill_flops(1, 6) == 6 * (2 * 1000 + 4 * 32 * 2 * 2 * 4096)
    assert tuned.cache_bytes(1, 6, 4) == plain.cache_bytes(1, 10, 4)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt", "chatglm_v2"])
def test_paddlenlp_multiplies_as_much(
    name: str, tiny_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single token is run, so that PaddleNLP computes the logits of no other one, and no masked score."""
    model = load_model(tiny_family(name))
    model.eval()
    counted = 0

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def count(x: Any, *rest: Any, **named: Any) -> Any:
            nonlocal counted
            result = operation(x, *rest, **named)
            transposed = rest[1] if operation.__name__ == "matmul" and len(rest) > 1 else False
            counted += 2 * prod(result.shape) * x.shape[-2 if transposed else -1]
            return result

        return count

    for operation in ("matmul", "linear", "bmm"):
        if hasattr(paddle._C_ops, operation):
            monkeypatch.setattr(paddle._C_ops, operation, counting(getattr(paddle._C_ops, operation)))
    EagerRunner(model).prefill([[5]])
    cost = decoder_cost(model.config.to_dict())
    # rotary embeddings and masks may be made by small products too
    assert cost.step_flops(1, 1) == cost.prefill_flops(1, 1) == pytest.approx(counted, rel=2e-3)
