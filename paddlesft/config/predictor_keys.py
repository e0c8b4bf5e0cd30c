"""Keys of PaddleNLP's predictor that export, predict and serve accept, so that its commands can be pasted."""

from dataclasses import dataclass
from typing import ClassVar

from paddlesft.config.fields import field
from paddlesft.config.translation import OldKey, respelled

_NO_KERNELS = "it belongs to PaddleNLP's fused GPU kernels (paddlenlp_ops), which are not used here"


@dataclass
class PredictorKeys:
    """Keys of PaddleNLP's predictor"""

    # its default for "not quantized" is the word None
    OLD_KEYS: ClassVar[dict[str, OldKey]] = {
        "quant_type": respelled("quant_type", lambda value: None if value == "None" else value, "not quantized"),
    }

    quant_type: str | None = field(
        None, "Says nothing new of a directory that paddlesft quantize made; of another one it is refused."
    )
    model_prefix: str = field(
        "model", "File name of an exported graph.", no_effect="graph.json in the directory names the graph's files"
    )
    export_precache: bool = field(
        False, "Prefixes as caches of an exported graph.", no_effect="prefix_path alone is enough"
    )
    model_type: str | None = field(
        None, "Kind of model.", no_effect="the model directory's config.json says what the model is"
    )
    total_max_length: int | None = field(
        None, "Longest prompt and reply.", no_effect="src_length and max_length bound prompt and reply"
    )
    block_attn: bool = field(False, "Cache in blocks.", no_effect=_NO_KERNELS)
    block_size: int | None = field(None, "Size of those blocks.", no_effect=_NO_KERNELS)
    append_attn: bool = field(False, "Attention kernels.", no_effect=_NO_KERNELS)
    cachekv_int8_type: str | None = field(None, "Cache in 8 bits.", no_effect=_NO_KERNELS)
    use_flash_attention: bool = field(False, "Attention kernels.", no_effect=_NO_KERNELS)
    avx_model: bool = field(False, "Fused kernels for CPUs.", no_effect="paddlesft export --format onnx is for CPUs")
