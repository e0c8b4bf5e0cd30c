"""Keys of ``paddlesft export``. They are those of PaddleNLP's export_model.py, so that its commands can be pasted."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field
from paddlesft.config.predictor_keys import PredictorKeys

DType = Literal["float32", "bfloat16", "float16"]

_CHOSEN_LATER = "the exported graph takes it anew in every run; paddlesft predict sets it"
_ANY_LENGTH = "the exported graph takes prompts and replies of any length that the model can have"
_ANY_BATCH = "the exported graph takes any number of rows"
_NO_KERNELS = "it belongs to fused GPU kernels (paddlenlp_ops), which no export here uses"


@dataclass
class _ExportKeys:
    """Export"""

    model_name_or_path: str | None = field(
        None, "Model directory, hub name, or embedded:smollm2. With an adapter: the base; unset: the adapter names it."
    )
    output_path: str | None = field(
        None, "New directory for what is exported. Required; inputs are never changed.", aliases=("output_dir",)
    )
    format: Literal["paddle", "onnx", "hf", "peft"] = field(
        "paddle",
        "What is written. paddle: a static graph for paddle.inference; onnx: a graph for ONNX Runtime; hf: a model "
        "directory for transformers; peft: the LoRA adapter of lora_path, for PEFT.",
    )
    onnx_compute: Literal["exact", "fast"] = field(
        "exact",
        "How an ONNX graph computes with weights in int8 or int4. exact: as the model does, in floats that are made of "
        "the codes when the graph is read; fast: with the codes, activations rounded to 8 bits for each block.",
    )
    lora_path: str | None = field(
        None,
        "LoRA adapter directory: added to the graph's weights where those are floats, kept beside quantized ones. hf: "
        "merged on the way, with merge-lora's proof; peft: what is written.",
    )
    prefix_path: str | None = field(None, "Prefix-Tuning directory: its keys and values are stored beside the graph.")
    base_precision: Literal["quantized", "full"] | None = field(
        None,
        "Base of an adapter that was trained over quantized weights: those (quantized, as when unset), or the ones "
        "before they were rounded (full), with which it computes something else.",
    )
    dtype: DType | None = field(
        None,
        "Type of the weights and of the cache. Unset: as the model directory says; a graph made on a CPU always has "
        "float32. hf: the weights are cast to it.",
    )
    device: str = field("auto", "Where the model is traced and checked: auto, cpu, gpu, gpu:1, ...")
    chat_template: str | None = field(None, "Template instead of the model's own: a built-in name or a path.")
    check_tokens: int = field(32, "Tokens of every prompt of the check, graph against model.", minimum=1)
    overwrite: bool = field(False, "Replace output_path when it has content.", aliases=("force",))
    inference_model: bool = field(False, "Export fused kernels.", no_effect=_NO_KERNELS)
    mode: Literal["dynamic", "static"] = field("dynamic", "Predictor.", no_effect="an export is always a static graph")
    src_length: int | None = field(None, "Longest prompt.", no_effect=_ANY_LENGTH)
    max_length: int | None = field(None, "Longest prompt and reply.", no_effect=_ANY_LENGTH)
    min_length: int | None = field(None, "Shortest reply.", no_effect=_CHOSEN_LATER)
    batch_size: int | None = field(None, "Rows.", no_effect=_ANY_BATCH)
    top_k: int | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    top_p: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    temperature: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    repetition_penalty: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    decode_strategy: str | None = field(None, "Sampling or greedy search.", no_effect=_CHOSEN_LATER)
    data_file: str | None = field(None, "Rows.", no_effect="an export answers no rows; paddlesft predict does")
    output_file: str | None = field(None, "Replies.", no_effect="an export answers no rows; paddlesft predict does")
    benchmark: bool = field(False, "Speed.", no_effect="paddlesft benchmark measures what was exported")


@dataclass
class ExportConfig(PredictorKeys, _ExportKeys):
    """Export"""

    total_max_length: int | None = field(None, "Longest prompt and reply.", no_effect=_ANY_LENGTH)
