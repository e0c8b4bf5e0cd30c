"""Keys about the model and about what of it is trained."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

DType = Literal["float32", "bfloat16", "float16"]
_OTHER_METHOD = "it is not among the methods of this version (full, lora, prefix_tuning)"
_HUB_UPLOAD = "models are written to output_dir only; upload the directory with the hub's own tool"
_LAYER_FUSION = "the layers are built by the model family here; nothing reads this key"


@dataclass
class ModelConfig:
    """Model"""

    model_name_or_path: str | None = field(
        None, "Model to start from: a directory, a hub name such as Qwen/Qwen2.5-0.5B, or embedded:smollm2."
    )
    tokenizer_name_or_path: str | None = field(
        None, "Tokenizer, when it is not the model's own.", aliases=("tokenizer_name",)
    )
    dtype: DType | None = field(
        None, "Type of the weights in memory. Unset: float32, or the half type that bf16/fp16 with level O2 asks for."
    )
    use_flash_attention: bool = field(False, "Use flash attention where the device has it (GPU).")
    continue_training: bool = field(
        True, "Start from the model's weights. Training from random weights is not offered."
    )

    # What is trained
    lora: bool = field(False, "Train low-rank adapters (LoRA) and keep the model's own weights frozen.")
    lora_rank: int = field(8, "Rank of the adapters.", minimum=1)
    lora_alpha: float | None = field(
        None, "Scale of the adapters is lora_alpha / lora_rank. Unset: 2 * lora_rank.", over=0
    )
    lora_dropout: float = field(0.0, "Dropout in front of the adapters.", minimum=0, maximum=1)
    lora_target_modules: str | list[str] | None = field(
        None,
        "Linear layers that get an adapter: all, a list of names, or a regular expression for full names. "
        "Unset: the model family's usual set.",
    )
    lora_bias: Literal["none", "lora", "all"] = field(
        "none", "Biases that are trained too: none, those of the adapted layers (lora), or all."
    )
    lora_path: str | None = field(None, "Adapter directory to start from (with lora: true).")
    use_quick_lora: bool = field(False, "Fold the adapter's backward pass into one kernel call; needs lora_dropout 0.")
    rslora: bool = field(False, "Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilised LoRA).")
    lora_plus_scale: float = field(1.0, "Learning rate of B relative to A (LoRA+).", over=0)
    prefix_tuning: bool = field(False, "Train key/value prefixes (Prefix-Tuning) and keep the model frozen.")
    num_prefix_tokens: int = field(128, "Length of the prefix in tokens.", minimum=1)
    prefix_projection: bool = field(False, "Produce the prefixes by a small MLP while training.")
    prefix_projection_hidden_size: int | None = field(
        None, "Width of that MLP. Unset: the model's hidden size.", minimum=1
    )
    prefix_path: str | None = field(None, "Prefix directory to start from (with prefix_tuning: true).")

    # What the adapter stands on
    weight_quantize_algo: Literal["nf4", "fp4", "weight_only_int8", "weight_only_int4"] | None = field(
        None,
        "Quantize the frozen base while it is loaded, and train the adapter over it (QLoRA, with lora or "
        "prefix_tuning): 4 bits by table (nf4, fp4), or integers with a scale per output. Leave it out for a base that "
        "paddlesft quantize has written.",
    )
    weight_blocksize: int = field(64, "Weights of nf4 and fp4 that share a scale.", minimum=1)
    weight_double_quant: bool = field(
        False, "Store those scales in 8 bits as well (double quantization).", aliases=("double_quantization",)
    )
    weight_double_quant_block_size: int = field(
        256, "Scales that share a scale of their own with weight_double_quant.", minimum=1
    )

    # Known from PaddleNLP, not part of this version
    pissa: bool = field(False, "PiSSA initialisation of LoRA.", unbuilt="PiSSA")
    lora_use_mixer: bool = field(False, "MosLoRA mixer between A and B.", unbuilt="MosLoRA")
    use_mora: bool = field(False, "MoRA adapters.", unbuilt="MoRA")
    vera: bool = field(False, "VeRA adapters.", unbuilt="VeRA")
    vera_rank: int = field(8, "Rank of VeRA adapters.", no_effect=_OTHER_METHOD)
    lokr: bool = field(False, "LoKr adapters.", unbuilt="LoKr")
    lokr_path: str | None = field(None, "LoKr directory to start from.", unbuilt="LoKr")
    lokr_dim: int = field(8, "Rank of LoKr adapters.", no_effect=_OTHER_METHOD)
    reft: bool = field(False, "Representation fine-tuning.", unbuilt="ReFT")
    neftune: bool = field(False, "Noise on the embeddings while training (NEFTune).", unbuilt="NEFTune")
    neftune_noise_alpha: float = field(
        5.0, "Strength of the NEFTune noise.", no_effect="it belongs to neftune, which this version does not have"
    )
    use_long_sequence_strategies: bool = field(
        False, "Stretch the position encoding by a named strategy.", unbuilt="long-sequence strategies"
    )
    rope_scaling_factor: float = field(
        1.0, "Factor of that strategy.", no_effect="it belongs to use_long_sequence_strategies"
    )
    strategy_type: str | None = field(
        None, "Kind of that strategy.", no_effect="it belongs to use_long_sequence_strategies"
    )
    strategy_name: str | None = field(
        None, "Name of that strategy.", no_effect="it belongs to use_long_sequence_strategies"
    )
    flash_mask: bool = field(
        False, "Sparse masks for flash attention (flashmask).", no_effect="packed rows are masked without it"
    )
    use_fast_layer_norm: bool = field(False, "Fast layer norm of GPT-3.", no_effect=_LAYER_FUSION)
    fuse_attention_qkv: bool | None = field(None, "Fuse the q, k and v projections.", no_effect=_LAYER_FUSION)
    fuse_attention_ffn: bool | None = field(None, "Fuse the gate and up projections.", no_effect=_LAYER_FUSION)
    hidden_dropout_prob: float = field(
        0.1, "Dropout of hidden states.", no_effect="the model directory's config.json decides about dropout"
    )
    attention_probs_dropout_prob: float = field(
        0.1, "Dropout of attention weights.", no_effect="the model directory's config.json decides about dropout"
    )
    from_aistudio: bool = field(
        False, "Load from AI Studio.", no_effect="hub names are looked up on all hubs, AI Studio included"
    )
    save_to_aistudio: bool = field(False, "Upload the result to AI Studio.", unbuilt="uploading to AI Studio")
    aistudio_repo_id: str | None = field(None, "Repository to upload to.", no_effect=_HUB_UPLOAD)
    aistudio_repo_private: bool = field(True, "Make that repository private.", no_effect=_HUB_UPLOAD)
    aistudio_repo_license: str = field("Apache License 2.0", "License of that repository.", no_effect=_HUB_UPLOAD)
    aistudio_token: str | None = field(None, "Token for that repository.", no_effect=_HUB_UPLOAD, secret=True)
