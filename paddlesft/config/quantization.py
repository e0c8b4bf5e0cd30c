"""Keys about quantization. Their names and meanings follow PaddleNLP."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

QuantType = Literal["a8w8", "llm.int8", "weight_only_int8", "weight_only_int4", "nf4", "fp4", "a8w8c8", "a8w8_fp8"]
# how a layer of its own format is named in mixed_precision: all spellings -> format
WEIGHT_FORMATS = {
    "int8": "int8", "wint8": "int8", "weight_only_int8": "int8",
    "int4": "int4", "wint4": "int4", "weight_only_int4": "int4",
    "nf4": "nf4", "fp4": "fp4",
}  # fmt: skip
GROUPWISE = 128  # inputs that share a scale with weight_quant_method groupwise, as in PaddleSlim
_QAT = (
    "training with simulated quantization (do_ptq and do_gptq quantize a trained model; lora with weight_quantize_algo "
    "trains on a quantized one)"
)
_AGAIN = "quantizing a quantized model further (predict, chat and QLoRA take its directory as model_name_or_path)"
_DEBUG = "printing values while quantizing (quant_report.json has the error of every layer)"


def weight_format(spelling: str) -> str | None:
    """Return the name of a weight's format for one of its spellings, None for an unknown one."""
    return WEIGHT_FORMATS.get(spelling.lower().replace("-", "_"))


@dataclass
class QuantizationConfig:
    """Quantization"""

    quant_type: QuantType = field(
        "a8w8",
        "What is quantized to what: weights and activations to 8 bits (a8w8; llm.int8 leaves outliers as they are), or "
        "weights only. Unset with do_gptq or do_awq: weight_only_int4. a8w8c8 and a8w8_fp8 are not offered.",
    )
    do_ptq: bool = field(False, "Quantize weights, and activations for a8w8, after training.")
    ptq_step: int = field(32, "Calibration batches for the scales of activations (a8w8).", minimum=1)
    do_gptq: bool = field(False, "Quantize the weights by GPTQ.")
    gptq_step: int = field(8, "Calibration batches of GPTQ.", minimum=1)
    do_awq: bool = field(False, "Quantize the weights with scales searched by AWQ.")
    awq_step: int = field(8, "Calibration batches of AWQ.", minimum=1)
    auto_clip: bool = field(False, "Search where to clip weights before rounding them, as AWQ does.")
    autoclip_step: int = field(8, "Calibration batches of clipping.", minimum=1)
    do_qat: bool = field(False, "Train with simulated quantization.", unbuilt=_QAT)
    shift: bool = field(False, "Take the middle of activations off before quantizing them (a8w8).")
    shift_all_linears: bool = field(False, "Shift in front of every linear layer.", aliases=("shift_all_linear",))
    shift_sampler: Literal["ema", "none"] = field("ema", "How activations are averaged for the shift.")
    shift_step: int = field(32, "Calibration batches of the shift.", minimum=1)
    smooth: bool = field(False, "Move the range of activations into the weights (SmoothQuant, a8w8).")
    smooth_all_linears: bool = field(False, "Smooth in front of every linear layer.", aliases=("smooth_all_linear",))
    smooth_sampler: Literal["multi_step", "none"] = field("none", "How activations are collected for smoothing.")
    smooth_step: int = field(32, "Calibration batches of smoothing.", minimum=1)
    smooth_piecewise_search: bool = field(False, "Search the smoothing factor piece by piece.")
    smooth_k_piece: int = field(3, "Number of pieces of that search.", minimum=1)
    smooth_search_piece: bool = field(False, "Search the number of pieces too.")
    search_alpha_min: float = field(0.2, "Smallest alpha of the piecewise search.", minimum=0, maximum=1)
    search_alpha_max: float = field(0.8, "Largest alpha of the piecewise search.", minimum=0, maximum=1)
    search_scale_min: float = field(1.0, "Smallest scale of the piecewise search.", over=0)
    search_scale_max: float = field(5.0, "Largest scale of the piecewise search.", over=0)
    weight_quant_method: Literal["abs_max_channel_wise", "groupwise"] = field(
        "abs_max_channel_wise", f"Scales of weights: one for each output, or one for each group of {GROUPWISE} inputs."
    )
    group_size: int | None = field(
        None,
        "Inputs of a layer that share a scale; 0: one scale for each output. Unset: 64 for nf4 and fp4, "
        f"{GROUPWISE} with weight_quant_method groupwise and for do_awq with int4, else 0.",
        minimum=0,
    )
    act_quant_method: Literal["abs_max", "avg"] = field("avg", "How the scales of activations are found (a8w8).")
    cachekv_quant_method: Literal["abs_max_headwise", "avg_headwise"] = field(
        "avg_headwise",
        "How the scales of the key/value cache are found.",
        no_effect="the key/value cache is not quantized",
    )
    fp8_type: list[str] = field(
        ["e4m3", "e4m3"], "Types of activation and weight for a8w8_fp8.", no_effect="fp8 is not among the types"
    )
    skip_list_names: list[str] = field([], "Layers that are not quantized: regular expressions for whole names.")
    mixed_precision: dict[str, str] | None = field(
        None, "Other formats for some layers: {regular expression for whole names: int8, int4, nf4 or fp4}."
    )
    max_ppl_increase: float | None = field(
        None, "Exit with code 1 where the perplexity grows by more than this share (0.02 is 2 percent).", minimum=0
    )
    load_quant_model: bool = field(False, "Start from a quantized model.", unbuilt=_AGAIN)
    do_quant_debug: bool = field(False, "Print intermediate values while quantizing.", unbuilt=_DEBUG)
    test_sample: str | None = field(None, "Prompt for do_quant_debug, which is not built yet.")

    @property
    def asked(self) -> list[str]:
        """The keys that ask for a quantization."""
        return [key for key in ("do_ptq", "do_gptq", "do_awq") if getattr(self, key)]

    @property
    def calibrates(self) -> bool:
        """Whether the methods look at the inputs of layers."""
        return self.do_gptq or self.do_awq or self.auto_clip or self.quant_type == "a8w8"
