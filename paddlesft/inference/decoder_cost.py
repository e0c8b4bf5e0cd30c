"""What a decoder has to compute and to read: the least that any program for it needs, from the sizes of its weights.

Shape legend: b rows, s tokens of a prompt, c tokens that a token sees (itself and a tuned prefix included), L layers,
a query heads, n key/value heads, d size of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddlesft.models.families import family_of


@dataclass(frozen=True)
class DecoderCost:
    """Sizes that decide about time.

    Attributes:
        layer_parameters: numbers in the matrices of all layers, low-rank adapters that run beside them included.
        head_parameters: numbers in the output matrix, whether it has memory of its own or is the embedding.
        attention_width: L x a x d.
        cache_width: 2 x L x n x d, numbers that one token adds to the cache.
        prefix: tokens of a tuned prefix.
    """

    layer_parameters: int
    head_parameters: int
    attention_width: int
    cache_width: int
    prefix: int = 0

    def prefill_flops(self, rows: int, tokens: int) -> int:
        """Operations of prompts, 2 per multiply and add: logits of the last token alone, scores below the diagonal.

        Args:
            rows: b.
            tokens: s, of each row.
        """
        seen = tokens * (tokens + 1) // 2 + tokens * self.prefix
        per_row = 2 * self.layer_parameters * tokens + 2 * self.head_parameters + 4 * self.attention_width * seen
        return rows * per_row

    def step_flops(self, rows: int, context: float) -> float:
        """Operations of one new token for each row.

        Scores and the mixture of values take 2 d operations each for every head and token seen.

        Args:
            rows: b.
            context: tokens that the new one sees, itself included; the prefix is not counted.
        """
        return rows * (
            2 * (self.layer_parameters + self.head_parameters) + 4 * self.attention_width * (context + self.prefix)
        )

    def cache_bytes(self, rows: int, tokens: float, number_bytes: int) -> float:
        """Bytes of the keys and values of ``rows`` texts of ``tokens`` tokens each, their prefixes included."""
        return rows * (tokens + self.prefix) * self.cache_width * number_bytes


def decoder_cost(config: Mapping[str, Any], prefix: int = 0, adapter_parameters: int = 0) -> DecoderCost:
    """Count from the content of a config.json in Paddle's layout; weights are not needed.

    Args:
        config: of the model. Quantized weights count as the matrices that they stand for.
        prefix: tokens of a tuned prefix.
        adapter_parameters: numbers in LoRA matrices that run beside the weights; merged ones cost nothing.
    """
    plan = family_of(config).plan(config)
    head = next((tensor.size for tensor in plan.head if len(tensor.shape) == 2), plan.table.size)
    return DecoderCost(
        layer_parameters=plan.layers * sum(tensor.size for tensor in plan.layer if len(tensor.shape) == 2)
        + adapter_parameters,
        head_parameters=head,
        attention_width=plan.layers * plan.heads * plan.head_dim,
        cache_width=2 * plan.layers * plan.kv_heads * plan.head_dim,
        prefix=prefix,
    )


def bytes_looked_up(config: Mapping[str, Any], number_bytes: int) -> int:
    """Bytes of an embedding that a step looks rows up in instead of reading it all: one that is not the head too."""
    plan = family_of(config).plan(config)
    return plan.table.size * number_bytes if plan.head else 0
