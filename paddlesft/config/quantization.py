"""Keys about quantization. Their names and meanings follow PaddleNLP."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

QuantType = Literal["a8w8", "a8w8c8", "a8w8_fp8", "weight_only_int8", "weight_only_int4"]


@dataclass
class QuantizationConfig:
    """Quantization"""

    quant_type: QuantType = field("a8w8", "What is quantized to what.")
    do_ptq: bool = field(False, "Quantize weights, and activations for a8w8, after training.")
    ptq_step: int = field(32, "Calibration steps of PTQ.", minimum=1)
    do_gptq: bool = field(False, "Quantize the weights by GPTQ.")
    gptq_step: int = field(8, "Calibration steps of GPTQ.", minimum=1)
    do_awq: bool = field(False, "Quantize the weights with scales searched by AWQ.")
    awq_step: int = field(8, "Calibration steps of AWQ.", minimum=1)
    auto_clip: bool = field(False, "Clip weights as AWQ does.")
    autoclip_step: int = field(8, "Calibration steps of clipping.", minimum=1)
    do_qat: bool = field(False, "Train with simulated quantization.", unbuilt="quantization")
    shift: bool = field(False, "Shift activations before quantizing them.")
    shift_all_linears: bool = field(False, "Shift in front of every linear layer.", aliases=("shift_all_linear",))
    shift_sampler: Literal["ema", "none"] = field("ema", "How activations are averaged for the shift.")
    shift_step: int = field(32, "Calibration steps of the shift.", minimum=1)
    smooth: bool = field(False, "Move the range of activations into the weights (SmoothQuant).")
    smooth_all_linears: bool = field(False, "Smooth in front of every linear layer.", aliases=("smooth_all_linear",))
    smooth_sampler: Literal["multi_step", "none"] = field("none", "How activations are collected for smoothing.")
    smooth_step: int = field(32, "Calibration steps of smoothing.", minimum=1)
    smooth_piecewise_search: bool = field(False, "Search the smoothing factor piece by piece.")
    smooth_k_piece: int = field(3, "Number of pieces of that search.", minimum=1)
    smooth_search_piece: bool = field(False, "Search the number of pieces too.")
    search_alpha_min: float = field(0.2, "Smallest alpha of the piecewise search.", minimum=0, maximum=1)
    search_alpha_max: float = field(0.8, "Largest alpha of the piecewise search.", minimum=0, maximum=1)
    search_scale_min: float = field(1.0, "Smallest scale of the piecewise search.", over=0)
    search_scale_max: float = field(5.0, "Largest scale of the piecewise search.", over=0)
    weight_quant_method: Literal["abs_max_channel_wise", "groupwise"] = field(
        "abs_max_channel_wise", "How the scales of weights are found."
    )
    act_quant_method: Literal["abs_max", "avg"] = field("avg", "How the scales of activations are found.")
    cachekv_quant_method: Literal["abs_max_headwise", "avg_headwise"] = field(
        "avg_headwise", "How the scales of the key/value cache are found."
    )
    fp8_type: list[str] = field(["e4m3", "e4m3"], "Types of activation and weight for a8w8_fp8.")
    skip_list_names: list[str] = field([], "Layers that are not quantized: expressions that fit whole names.")
    mixed_precision: dict[str, str] | None = field(
        None, "Other formats for some layers: {expression that fits whole names: int8 or int4}."
    )
    max_ppl_increase: float | None = field(
        None, "Fail where the perplexity grows by more than this share (0.02 is 2 percent).", minimum=0
    )
    load_quant_model: bool = field(False, "Start from a quantized model.", unbuilt="quantization")
    do_quant_debug: bool = field(False, "Print intermediate values while quantizing.", unbuilt="quantization")
    test_sample: str | None = field(None, "Prompt for that debugging.")
