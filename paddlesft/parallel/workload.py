"""What a run computes, as far as memory and traffic depend on it: number formats, what is trained, rows, recompute."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddlesft.models.tensor_plans import PlannedTensor, TensorPlan

if TYPE_CHECKING:
    from paddlesft.config.model import ModelConfig
    from paddlesft.config.resolve import RunConfig
    from paddlesft.models.family import Family

# bytes of an optimizer's moments for each trained number; Adafactor keeps rows and columns only, next to nothing
MOMENT_BYTES = {"adamw": 8, "adamw_custom": 8, "adamw_16bit_moment": 4, "adamw_mini": 4, "adafactor": 0}


@dataclass(frozen=True)
class Workload:
    """One run, apart from its layout.

    Attributes:
        length: tokens of a row.
        weight_bytes, gradient_bytes, state_bytes, activation_bytes: bytes of a number; ``state_bytes`` is what the
            optimizer keeps for each trained number, its float32 copy of the weight included.
        score_bytes: kept of each attention score, before dropout; PaddleNLP computes the softmax in float32 and keeps
            that beside the half-precision copy.
        method: full, lora or prefix.
        lora_rank, lora_targets: of LoRA; the targets are regular expressions over module names.
        prefix_tokens, prefix_width: of Prefix-Tuning; the width of its MLP, 0 without one.
        recompute: none, full (the layer), full_attn (its attention block) or core_attn (the attention product).
        flash_attention: the scores are never stored.
        divided_logits: the logits of a divided vocabulary stay divided, as the trainer leaves them.
        regather: inputs that sequence parallelism gathers are gathered again in the backward pass instead of kept
            (``recompute_allgather`` of Paddle's ``mp_configs``, which no key of PaddleNLP sets).
        quantized_bytes: of a number in the decoder layers' matrices of a base that ``weight_quantize_algo`` quantizes,
            its share of a scale included; None where they are like all others.
    """

    length: int = 2048
    weight_bytes: int = 4
    gradient_bytes: int = 4
    state_bytes: int = 8
    activation_bytes: int = 4
    score_bytes: int = 4
    method: str = "full"
    lora_rank: int = 8
    lora_targets: tuple[str, ...] = ()
    prefix_tokens: int = 0
    prefix_width: int = 0
    recompute: str = "none"
    flash_attention: bool = False
    divided_logits: bool = False
    regather: bool = False
    quantized_bytes: float | None = None

    def trained(self, tensors: Iterable[PlannedTensor], t: int) -> int:
        """Return how many trained numbers one of ``t`` tensor-parallel processes holds for these weights.

        LoRA (arXiv:2106.09685) adds A [inputs, r] and B [r, outputs] to a matrix; of a divided matrix the side that is
        divided is divided in A or B too.

        Args:
            tensors: of the model, under their full names.
            t: tensor-parallel degree.
        """
        if self.method == "full":
            return sum(tensor.local_size(t) for tensor in tensors)
        if self.method == "prefix":
            return 0  # see prefix_numbers: they stand outside the model's own weights
        return sum(self._lora_size(tensor, t) for tensor in tensors if self._is_target(tensor))

    def prefix_numbers(self, plan: TensorPlan) -> int:
        """Return the numbers of a prefix (arXiv:2101.00190), which every process holds whole."""
        width = plan.kv_heads * plan.head_dim
        flat = plan.layers * 2 * width  # keys and values of every layer
        if not self.prefix_width:
            return self.prefix_tokens * flat
        w = self.prefix_width
        return self.prefix_tokens * width + width * w + w + w * flat + flat

    def _is_target(self, tensor: PlannedTensor) -> bool:
        module = tensor.name.removesuffix(".weight")
        return len(tensor.shape) == 2 and any(re.fullmatch(target, module) for target in self.lora_targets)

    def _lora_size(self, tensor: PlannedTensor, t: int) -> int:
        parts = [
            size // t if tensor.split == axis and size % t == 0 else size for axis, size in enumerate(tensor.shape)
        ]
        return self.lora_rank * sum(parts)


def workload_of(run: RunConfig, family: Family, plan: TensorPlan) -> Workload:
    """Read the workload out of a configuration.

    Args:
        run: the configuration.
        family: the model's row.
        plan: its weights.
    """
    training, model = run.training, run.model
    half = training.bf16 or training.fp16
    pure = half and training.fp16_opt_level == "O2"
    narrow = pure if model.dtype is None else model.dtype != "float32"
    projected = model.prefix_tuning and model.prefix_projection
    targets = model.lora_target_modules or family.lora_target_modules
    moments = MOMENT_BYTES[training.optim]
    return Workload(
        length=run.data.max_length,
        weight_bytes=2 if narrow else 4,
        gradient_bytes=2 if narrow and not training.amp_master_grad else 4,
        state_bytes=moments + 4 if narrow else moments,
        activation_bytes=2 if half or narrow else 4,
        score_bytes=4 + 2 if half or narrow else 4,
        method="lora" if model.lora else "prefix" if model.prefix_tuning else "full",
        lora_rank=model.lora_rank,
        lora_targets=(targets,) if isinstance(targets, str) else tuple(targets),
        prefix_tokens=model.num_prefix_tokens if model.prefix_tuning else 0,
        prefix_width=(model.prefix_projection_hidden_size or plan.hidden) if projected else 0,
        recompute=training.recompute_granularity if training.recompute else "none",
        flash_attention=model.use_flash_attention,
        divided_logits=True,
        quantized_bytes=_quantized_bytes(model),
    )


def _quantized_bytes(model: ModelConfig) -> float | None:
    algorithm = model.weight_quantize_algo
    if not algorithm:
        return None
    if algorithm.startswith("weight_only"):  # one scale for each output is next to nothing
        return 1.0 if algorithm.endswith("8") else 0.5
    scale = 1 + 4 / model.weight_double_quant_block_size if model.weight_double_quant else 4
    return 0.5 + scale / model.weight_blocksize
