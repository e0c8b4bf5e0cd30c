"""Keys of the verbs that work on finished directories: predict, chat, merge-lora, merge-shards, split-shards,
import-gguf, import-peft, export-hf, dequantize.

``PredictConfig`` keeps the names, defaults and meanings of PaddleNLP's predictor, so its commands can be pasted.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paddlesft.config.benchmark import BenchmarkConfig
from paddlesft.config.chat_page import ChatPageConfig
from paddlesft.config.export import ExportConfig
from paddlesft.config.fields import LARGEST_SEED, field
from paddlesft.config.predictor_keys import PredictorKeys
from paddlesft.config.serve import ServeConfig
from paddlesft.config.translation import OldKey, Translation, Untranslatable

DType = Literal["float32", "bfloat16", "float16"]
DecodeStrategy = Literal["sampling", "greedy_search"]


def _strategy(do_sample: Any) -> Translation:
    if not isinstance(do_sample, bool):
        raise Untranslatable("allowed: true or false.")
    strategy = "sampling" if do_sample else "greedy_search"
    return Translation({"decode_strategy": strategy}, f'read as decode_strategy: "{strategy}".')


@dataclass
class _ReplyConfig:
    """Model and generation"""

    OLD_KEYS: ClassVar[dict[str, OldKey]] = {
        "do_sample": OldKey(_strategy, touches=("decode_strategy",), summary="decides about decode_strategy")
    }

    model_name_or_path: str | None = field(
        None, "Model directory, hub name, or embedded:smollm2. With an adapter: the base; unset: the adapter names it."
    )
    lora_path: str | None = field(None, "LoRA adapter directory to use on top of the model.")
    prefix_path: str | None = field(None, "Prefix-Tuning directory to use on top of the model.")
    base_precision: Literal["quantized", "full"] | None = field(
        None,
        "Base of an adapter that was trained over quantized weights: those (quantized, as when unset), or the ones "
        "before they were rounded (full), with which it computes something else.",
    )
    dtype: DType | None = field(None, "Type of the weights in memory. Unset: as the model directory says.")
    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, ...")
    chat_template: str | None = field(None, "Template instead of the model's own: a built-in name or a path.")
    system_prompt: str | None = field(None, "System message for conversations that have none.", aliases=("system",))
    src_length: int = field(1024, "Most tokens of the prompt; longer prompts lose their beginning.", minimum=1)
    max_length: int = field(2048, "Most tokens of prompt and reply together.", minimum=2)
    max_new_tokens: int | None = field(None, "Most tokens of the reply. Unset: max_length - src_length.", minimum=1)
    min_new_tokens: int = field(0, "Fewest tokens of the reply.", minimum=0, aliases=("min_tokens", "min_length"))
    decode_strategy: DecodeStrategy = field("sampling", "Draw tokens (sampling) or always take the most likely one.")
    top_k: int = field(0, "Draw among this many most likely tokens; 0 for all, 1 is greedy.", minimum=0)
    top_p: float = field(
        0.7, "Draw among the most likely tokens that together reach this probability.", over=0, maximum=1
    )
    temperature: float = field(0.95, "Divides the logits before drawing; smaller is more certain.", minimum=0)
    repetition_penalty: float = field(1.0, "Above 1 makes tokens that occurred already less likely.", over=0)
    stop: list[str] | None = field(None, "Texts at which a reply ends, besides the model's own stop tokens.")
    seed: int = field(42, "Seed of drawing.", minimum=0, maximum=LARGEST_SEED)


@dataclass
class _PredictKeys:
    """Predict"""

    data_file: str | None = field(None, "Rows to answer, in any of the training formats. Unset: two sample questions.")
    column_map: dict[str, str] | None = field(None, "Column names of plain tables, e.g. {prompt: question}.")
    max_samples: int | None = field(None, "Answer only this many rows.", minimum=1)
    output_file: str = field("output.json", "Receives one JSON line for each row, written as they come.")
    overwrite: bool = field(
        False, "Start output_file anew. Without it rows answered already are kept and skipped.", aliases=("force",)
    )
    batch_size: int = field(1, "Rows answered at a time; the replies do not depend on it.", minimum=1)
    mode: Literal["dynamic", "static"] | None = field(
        None,
        "Insist on a model in memory (dynamic) or on a graph that paddlesft export wrote (static). Unset: whichever "
        "the directory holds.",
    )
    inference_model: bool = field(
        False, "PaddleNLP's fused GPU kernels: a line says why the run goes without them; the replies stay the same."
    )
    benchmark: bool = field(False, "Repeat the first batch, print tokens per second and requests per second.")
    speed_file: str | None = field(None, "Receives counts, rates and latencies of the run as JSON.")


@dataclass
class PredictConfig(PredictorKeys, _PredictKeys, _ReplyConfig):
    """Predict"""

    OLD_KEYS: ClassVar[dict[str, OldKey]] = {**_ReplyConfig.OLD_KEYS, **PredictorKeys.OLD_KEYS}


@dataclass
class ChatConfig(_ReplyConfig):
    """Chat"""

    history: bool = field(True, "Answer with the conversation so far in mind.")
    stream: bool = field(True, "Show the reply as it is made.")


@dataclass
class MergeLoraConfig:
    """Merge LoRA"""

    model_name_or_path: str | None = field(
        None, "Base model: directory, hub name or embedded:smollm2. Unset: the base that the adapter names."
    )
    lora_path: str | None = field(None, "LoRA adapter directory. Required.")
    merge_model_path: str | None = field(
        None,
        "New directory for the merged model. Required; neither input is changed.",
        aliases=("merge_lora_model_path", "output_path"),
    )
    dtype: DType | None = field(
        None,
        "Type of the merged weights. Unset: the base's; float32 for dequantized weights. The sum is always made in "
        "float32.",
    )
    base_precision: Literal["dequantized", "full"] | None = field(
        None,
        "Needed for an adapter that was trained over quantized weights: merge into what those stand for (dequantized; "
        "the result computes what training saw), or into the weights before they were rounded (full; it does not).",
    )
    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, ...")
    overwrite: bool = field(False, "Replace merge_model_path when it has content.")
    force: bool = field(False, "Merge although the adapter was trained on another base (fingerprints differ).")
    low_gpu_mem: bool = field(
        False, "Save GPU memory while merging.", no_effect="the sum is made weight by weight, which needs little memory"
    )
    safe_serialization: bool = field(True, "Write safetensors.", no_effect="models are always written as safetensors")


@dataclass
class MergeShardsConfig:
    """Merge shards"""

    model_name_or_path: str | None = field(
        None, "Checkpoint directory with one weight file per tensor-parallel rank or pipeline stage. Required."
    )
    output_path: str | None = field(
        None, "New directory for the merged model or adapter. Required; the checkpoint is not changed.",
        aliases=("merge_model_path",),
    )  # fmt: skip
    base_model_name_or_path: str | None = field(
        None, "Base model of an adapter that has no config.json beside it. Unset: the base that the adapter names."
    )
    overwrite: bool = field(False, "Replace output_path when it has content.")
    force: bool = field(False, "Take the first rank's values where weights that all ranks should share differ.")
    copy_whole: bool = field(
        False, "Copy a checkpoint that holds whole weights already, as a plain model directory without parallel keys."
    )
    compute_logits: bool = field(
        False, "Load the merged model and compute with it, too. This needs memory for the whole model in float32."
    )
    device: str | None = field(None, "Device.", no_effect="joining parts is copying, which is done in host memory")


@dataclass
class SplitShardsConfig:
    """Split shards"""

    model_name_or_path: str | None = field(None, "Model directory or LoRA adapter directory to split. Required.")
    output_path: str | None = field(None, "New directory for the ranks' files. Required; the input is not changed.")
    tensor_parallel_degree: int = field(1, "Cards that divide every matrix among them.", minimum=1)
    pipeline_parallel_degree: int = field(1, "Stages that divide the layers among them.", minimum=1)
    file_format: Literal["pdparams", "safetensors"] = field("pdparams", "Kind of the files; adapters: pdparams.")
    base_model_name_or_path: str | None = field(
        None, "Base model of an adapter that has no config.json beside it. Unset: the base that the adapter names."
    )
    overwrite: bool = field(False, "Replace output_path when it has content.")


@dataclass
class ImportGgufConfig:
    """Import GGUF"""

    overwrite: bool = field(False, "Replace the directory when it has content.", aliases=("force",))
    dtype: DType | None = field(
        None, "Type of the weights that are written. Unset: as in the file, float32 if quantized."
    )


@dataclass
class ImportPeftConfig:
    """Import PEFT"""

    model_name_or_path: str | None = field(
        None, "The model that the adapter was trained on: directory, hub name, or embedded:smollm2. Unset: the adapter "
        "names it."
    )  # fmt: skip
    overwrite: bool = field(False, "Replace the directory when it has content.", aliases=("force",))


@dataclass
class ExportHfConfig:
    """Export to Hugging Face"""

    overwrite: bool = field(False, "Replace the directory when it has content.", aliases=("force",))


@dataclass
class DequantizeConfig:
    """Dequantize"""

    overwrite: bool = field(False, "Replace the directory when it has content.", aliases=("force",))
    dtype: DType = field("float32", "Type of the weights that are written; float32 holds them without rounding.")
    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, ...")


VERB_GROUPS: dict[str, type] = {
    "predict": PredictConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "chat-page": ChatPageConfig,
    "merge-lora": MergeLoraConfig,
    "merge-shards": MergeShardsConfig,
    "split-shards": SplitShardsConfig,
    "export": ExportConfig,
    "benchmark": BenchmarkConfig,
    "import-gguf": ImportGgufConfig,
    "import-peft": ImportPeftConfig,
    "export-hf": ExportHfConfig,
    "dequantize": DequantizeConfig,
}
