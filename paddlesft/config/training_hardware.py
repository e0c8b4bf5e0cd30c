"""Keys about the device, number formats, memory and speed of one process."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

_AS_TRAINED = "evaluation computes in the number format of the training"


@dataclass
class HardwareConfig:
    """Device, precision, memory, speed"""

    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, xpu, npu, ...")
    no_cuda: bool = field(False, "Use the CPU although there is a GPU.", aliases=("use_cpu",))

    # Number formats
    bf16: bool = field(False, "Compute in bfloat16 (GPU). On a CPU training stays in float32 and says so.")
    fp16: bool = field(False, "Compute in float16 (GPU). On a CPU training stays in float32 and says so.")
    fp16_opt_level: Literal["O0", "O1", "O2"] = field(
        "O1", "Mixed precision of bf16/fp16: O1 casts operations, O2 also keeps the weights in the half type."
    )
    amp_master_grad: bool = field(False, "Keep gradients in float32 with O2.")
    scale_loss: float = field(32768.0, "First loss scale of fp16.", over=0)
    bf16_full_eval: bool = field(False, "Evaluate entirely in bfloat16 (GPU).", no_effect=_AS_TRAINED)
    fp16_full_eval: bool = field(False, "Evaluate entirely in float16 (GPU).", no_effect=_AS_TRAINED)
    amp_custom_black_list: list[str] | None = field(None, "Operations kept in float32.")
    amp_custom_white_list: list[str] | None = field(None, "Operations done in the half type.")

    # Memory
    recompute: bool = field(
        False,
        "Compute activations again in the backward pass instead of keeping them.",
        aliases=("gradient_checkpointing", "use_recompute"),
    )
    recompute_granularity: Literal["full", "full_attn", "core_attn"] = field(
        "full", "What is computed again: the whole layer, its attention block, or only the attention product."
    )
    no_recompute_layers: list[int] | None = field(None, "Layers whose activations are kept all the same.")
    recompute_use_reentrant: bool = field(False, "Use the implementation of recompute that re-enters the layer.")
    refined_recompute: str = field(
        "",
        "Operations left out of recompute.",
        no_effect="recompute_granularity and no_recompute_layers decide that here",
    )
    offload_recompute_inputs: bool = field(
        False,
        "Keep the inputs of recomputed layers in host memory.",
        no_effect="no model of paddlenlp 3.0.0b4 reads it, and the form of recompute used here cannot move its inputs",
    )
    offload_optim: bool = field(False, "Keep the optimiser state in host memory (GPU).")
    release_grads: bool = field(False, "Free gradients after each step instead of filling them with zero.")

    # Speed
    use_fused_rms_norm: bool = field(False, "One kernel for RMSNorm (GPU).", aliases=("fuse_rms_norm",))
    use_fused_rope: bool = field(False, "One kernel for rotary positions (GPU).", aliases=("fuse_rope",))
    use_fused_linear: bool = field(
        False, "One kernel for linear layer and bias (GPT-3 on GPU).", aliases=("fuse_linear",)
    )
    use_fused_dropout_add: bool = field(False, "One kernel for dropout and residual (GPT-3 on GPU).")
    use_fused_linear_cross_entropy: bool = field(
        False,
        "One kernel for the output layer and the loss.",
        no_effect="logits are made at trained positions only, which saves that memory on every device",
    )
    dataloader_num_workers: int = field(0, "Processes that prepare batches. 0: the main process.", minimum=0)
    dataloader_drop_last: bool = field(False, "Leave out the last batch of an epoch when it is not full.")
    skip_memory_metrics: bool = field(True, "No memory profile in the metrics; the log line shows memory anyway.")
    skip_profile_timer: bool = field(True, "No timeline of the steps' parts.")
    to_static: bool = field(False, "Compile the model to a static graph.", unbuilt="training in static graph mode")
