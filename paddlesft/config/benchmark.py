"""Keys of ``paddlesft benchmark``."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field


@dataclass
class BenchmarkConfig:
    """Benchmark"""

    model_name_or_path: str | None = field(
        None, "Model directory, exported graph, hub name, or embedded:smollm2; the first argument without a key."
    )
    lora_path: str | None = field(None, "LoRA adapter directory to use on top of the model.")
    prefix_path: str | None = field(None, "Prefix-Tuning directory to use on top of the model.")
    base_precision: Literal["quantized", "full"] | None = field(
        None,
        "Base of an adapter that was trained over quantized weights: those (quantized, as when unset), or the ones "
        "before they were rounded (full).",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        None, "Type to compute with. Unset: as the model directory says; on a CPU always float32."
    )
    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, ...")
    threads: int | None = field(
        None, "Threads of the CPU's libraries. Unset: OMP_NUM_THREADS, or all cores.", minimum=1
    )
    prompt_length: int = field(128, "Tokens of each prompt.", minimum=1, aliases=("src_length",))
    new_tokens: int = field(64, "Tokens decoded after each prompt.", minimum=1, aliases=("max_new_tokens",))
    batch_size: list[int] | str = field(
        [1, 8], "Numbers of rows, as 1,8; each is measured on its own.", aliases=("batch_sizes",)
    )
    warm_up: int = field(1, "Rounds before those that count.", minimum=0)
    repetitions: int = field(5, "Rounds that count; their median is shown.", minimum=1)
    chat_template: str | None = field(None, "Template instead of the model's own: a built-in name or a path.")
    output_file: str | None = field(None, "JSON file for the figures; written anew.")
