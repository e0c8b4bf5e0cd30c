"""Keys of ``paddlesft export``. They are those of PaddleNLP's export_model.py, so that its commands can be pasted."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from paddlesft.config.fields import field
from paddlesft.config.translation import OldKey, respelled

DType = Literal["float32", "bfloat16", "float16"]

_CHOSEN_LATER = "the exported graph takes it anew in every run; paddlesft predict sets it"
_ANY_LENGTH = "the exported graph takes prompts and replies of any length that the model can have"
_ANY_BATCH = "the exported graph takes any number of rows"
_NO_KERNELS = "it belongs to fused GPU kernels (paddlenlp_ops), which no export here uses"


@dataclass
class ExportConfig:
    """Export"""

    # PaddleNLP's default for "not quantized" is the word None.
    OLD_KEYS: ClassVar[dict[str, OldKey]] = {
        "quant_type": respelled("quant_type", lambda value: None if value == "None" else value, "not quantized"),
    }

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
    quant_type: str | None = field(
        None, "Says nothing new of a directory that paddlesft quantize made; of another one it is refused."
    )
    inference_model: bool = field(False, "Export fused kernels.", no_effect=_NO_KERNELS)
    export_precache: bool = field(False, "Prefixes as caches of the graph.", no_effect="prefix_path alone is enough")
    model_prefix: str = field("model", "File name of the graph.", no_effect="graph.json names the files")
    mode: Literal["dynamic", "static"] = field("dynamic", "Predictor.", no_effect="an export is always a static graph")
    model_type: str | None = field(
        None, "Kind of model.", no_effect="the model directory's config.json says what the model is"
    )
    src_length: int | None = field(None, "Longest prompt.", no_effect=_ANY_LENGTH)
    max_length: int | None = field(None, "Longest prompt and reply.", no_effect=_ANY_LENGTH)
    min_length: int | None = field(None, "Shortest reply.", no_effect=_CHOSEN_LATER)
    total_max_length: int | None = field(None, "Longest prompt and reply.", no_effect=_ANY_LENGTH)
    batch_size: int | None = field(None, "Rows.", no_effect=_ANY_BATCH)
    top_k: int | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    top_p: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    temperature: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    repetition_penalty: float | None = field(None, "Sampling.", no_effect=_CHOSEN_LATER)
    decode_strategy: str | None = field(None, "Sampling or greedy search.", no_effect=_CHOSEN_LATER)
    data_file: str | None = field(None, "Rows.", no_effect="an export answers no rows; paddlesft predict does")
    output_file: str | None = field(None, "Replies.", no_effect="an export answers no rows; paddlesft predict does")
    benchmark: bool = field(False, "Speed.", no_effect="paddlesft benchmark measures what was exported")
    block_attn: bool = field(False, "Cache in blocks.", no_effect=_NO_KERNELS)
    block_size: int | None = field(None, "Size of those blocks.", no_effect=_NO_KERNELS)
    append_attn: bool = field(False, "Fused attention.", no_effect=_NO_KERNELS)
    cachekv_int8_type: str | None = field(None, "Cache in 8 bits.", no_effect=_NO_KERNELS)
    use_flash_attention: bool = field(False, "Fused attention.", no_effect=_NO_KERNELS)
    avx_model: bool = field(False, "Fused kernels for CPUs.", no_effect="paddlesft export --format onnx is for CPUs")
