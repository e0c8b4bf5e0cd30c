"""paddlesft benchmark: how fast a model or an exported graph is on this machine.

    paddlesft benchmark DIR                                        prompts of 128 tokens, 64 new ones, 1 and 8 rows
    paddlesft benchmark DIR --output_file bench.json               the same, and every figure as JSON
    paddlesft benchmark DIR --lora_path ADAPTER --batch_size 1,4,16 --prompt_length 512 --threads 4

DIR is a model directory, float or quantized, or what paddlesft export wrote. Prompts (prefill) and single tokens
(decode) are timed apart; shares of the machine's peak say what is left to gain: of operations for prompts, of memory
bandwidth for decoding.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import is_option, read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError

if TYPE_CHECKING:
    from paddlesft.config.benchmark import BenchmarkConfig

EXAMPLE = "Example: paddlesft benchmark models/merged --output_file bench.json"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.benchmark import BenchmarkConfig
    from paddlesft.directories import refuse_below_file

    if wants_help(argv):
        return show_help(__doc__, "benchmark", BenchmarkConfig)
    if argv and not is_option(argv[0]) and not argv[0].endswith((".json", ".yaml", ".yml")):
        argv = ["--model_name_or_path", *argv]
    config = read_arguments("benchmark", BenchmarkConfig, argv)
    if config.model_name_or_path is None and config.lora_path is None and config.prefix_path is None:
        raise ConfigError(f"No model is named. {EXAMPLE}")
    if config.output_file is not None:
        if Path(config.output_file).is_dir():
            raise ConfigError(f"output_file: {config.output_file} is a directory. Give the name of a file.")
        refuse_below_file(Path(config.output_file))
    return _benchmark(config, batch_sizes(config.batch_size))


def batch_sizes(value: list[int] | str) -> tuple[int, ...]:
    """Read ``1,8`` or a list.

    Raises:
        ConfigError: it holds something else than positive numbers, or none.
    """
    parts = value.split(",") if isinstance(value, str) else [str(part) for part in value]
    sizes = [int(part) for part in parts if part.strip().isdecimal()]
    if not parts or len(sizes) != len(parts) or min(sizes) < 1:
        shown = value if isinstance(value, str) else ",".join(parts)
        raise ConfigError(f"batch_size: {shown!r} found; allowed: numbers from 1, with commas between them, as 1,8.")
    return tuple(dict.fromkeys(sizes))


def _use_threads(threads: int) -> None:
    """Let the CPU's libraries use this many threads; best before paddle is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "paddle" in sys.modules:
        import paddle

        paddle.base.core.set_num_threads(threads)


def _benchmark(config: BenchmarkConfig, sizes: tuple[int, ...]) -> int:
    if config.threads is not None:
        _use_threads(config.threads)
    from rich.console import Console

    from paddlesft.directories import write_json
    from paddlesft.inference.benchmark import Memory, Settings, run_benchmark
    from paddlesft.inference.device import use_device
    from paddlesft.inference.loading import load_for_inference

    console = Console(highlight=False, soft_wrap=True)
    use_device(config.device)
    settings = Settings(config.prompt_length, config.new_tokens, sizes, config.warm_up, config.repetitions)
    memory = Memory()
    loaded = load_for_inference(
        config.model_name_or_path, config.lora_path, config.prefix_path, config.dtype, config.chat_template,
        base_precision=config.base_precision,
    )  # fmt: skip
    result = run_benchmark(
        loaded, settings, memory, lambda rows: console.print(f"Measuring batch size {rows} ...", markup=False)
    )
    _show(console, result)
    if config.output_file is not None:
        write_json(Path(config.output_file), result)
        console.print(f"Figures: {config.output_file}", markup=False)
    return 0


def _show(console: Any, result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    machine, model, settings = result["machine"], result["model"], result["settings"]
    where = machine.get("card") or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    adapter = f" with {model['adapter_kind']} adapter {model['adapter']}" if model["adapter"] else ""
    rounded = f", weights in {model['formats']}" if model["formats"] else ""
    console.print(f"Machine: {where} ({machine['device']})", markup=False)
    console.print(f"Model: {model['directory']}{adapter}, {model['route']}, {model['dtype']}{rounded}", markup=False)
    console.print(
        f"Prompts of {settings['prompt_length']} tokens, {settings['new_tokens']} new ones; medians of "
        f"{settings['repetitions']} rounds, in brackets the fastest and the slowest"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    rows: dict[str, list[str]] = {}
    for one in result["results"]:
        table.add_column(f"{one['batch_size']} row{'s' * (one['batch_size'] > 1)}", justify="right", no_wrap=True)
        cells = {
            "prefill, tokens/s": f"{one['prefill_tokens_per_second']:,.1f}",
            "  ms, all prompts together": _milliseconds(one["prefill_seconds"]),
            "  share of peak operations": f"{one['prefill_utilisation']:.1%}",
            "decode, tokens/s": f"{one['decode_tokens_per_second']:,.1f}",
            "  ms per step of all rows": _milliseconds(one["token_seconds"]),
            "  share of memory bandwidth": f"{one['bandwidth_utilisation']:.1%}",
            "  share of peak operations ": f"{one['decode_utilisation']:.1%}",
            "cache, MB": f"{one['cache_bytes'] / 1e6:,.1f}",
            "most memory, MB": f"{one['peak_memory'] / 1e6:,.0f}",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    peaks, memory = result["peaks"], result["memory"]
    console.print(
        f"Memory: weights {memory['weights'] / 1e6:,.1f} MB; {memory['loaded'] / 1e6:,.0f} MB more held after loading "
        "than before"
    )
    console.print(f"Operations per token: {model['flops_per_token'] / 1e9:,.3g} GFLOP, and attention")
    console.print(
        f"Peak operations: {peaks['flops']['value'] / 1e9:,.0f} GFLOP/s ({peaks['flops']['how']})\n"
        f"Memory bandwidth: {peaks['bandwidth']['value'] / 1e9:,.1f} GB/s ({peaks['bandwidth']['how']})",
        markup=False,
    )


def _milliseconds(seconds: dict[str, float]) -> str:
    return f"{seconds['median'] * 1e3:,.1f} ({seconds['least'] * 1e3:,.1f}-{seconds['most'] * 1e3:,.1f})"
