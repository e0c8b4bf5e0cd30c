"""One call of a decoder over a cache that its caller owns: what the decode loop and static graphs have in common."""

from __future__ import annotations

from paddlesft.models.steps.step import (
    CacheShape,
    DecoderStep,
    refuse_without_step,
    step_of,
    step_refusal,
    step_refusal_of,
)

__all__ = ["CacheShape", "DecoderStep", "refuse_without_step", "step_of", "step_refusal", "step_refusal_of"]
