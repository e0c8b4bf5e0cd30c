"""The gated feed-forward block: gate and up share one pass over the input, then ``silu(gate) * up``, then down."""

from __future__ import annotations

from paddle import Tensor
from paddlenlp.transformers.llama.modeling import LlamaMLP

from paddlesft.models.fast.linear import linears
from paddlesft.models.fast.primitives import SHORT_SIDE
from paddlesft.models.fast.swiglu import SwiGLUFunction


class FastMLP(LlamaMLP):
    """``LlamaMLP`` on the fast functions; a decoding step and unusual LoRA layers take upstream's path."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform float32 [b, s, h]."""
        rows = x.reshape([-1, x.shape[-1]])
        gated = linears(rows, [self.gate_proj, self.up_proj]) if rows.shape[0] >= SHORT_SIDE else None
        if gated is None:
            return super().forward(x)
        inner = SwiGLUFunction.apply(*gated)
        down = linears(inner, [self.down_proj])
        if down is None:
            return self.down_proj(inner.reshape([*x.shape[:-1], -1]))
        return down[0].reshape(x.shape)
