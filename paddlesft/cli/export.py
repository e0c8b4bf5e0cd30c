"""paddlesft export: write a model as a static graph, or in another tool's format, and prove it.

    paddlesft export --model_name_or_path DIR --output_path OUT                   a graph for paddle.inference
    paddlesft export --model_name_or_path DIR --output_path OUT --format onnx     a graph for ONNX Runtime
    paddlesft export --model_name_or_path DIR --output_path OUT --format hf       a directory for transformers
    paddlesft export --lora_path ADAPTER --output_path OUT --format peft          a LoRA adapter for PEFT

A graph is the whole model for one call over a key/value cache: prompts and single tokens, any number of rows, any
length. Adapters and quantized directories are exported too. The written graph is then read back and has to say what the
model in memory says, token for token; one that does not is not left behind. OUT is a directory that paddlesft predict
--mode static, benchmark and serving programs take.
"""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.cli.verb_arguments import read_arguments, show_help, wants_help
from paddlesft.errors import ConfigError

if TYPE_CHECKING:
    from paddlesft.config.export import ExportConfig

EXAMPLE = "Example: paddlesft export --model_name_or_path models/merged --output_path models/merged-graph"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.export import ExportConfig

    if wants_help(argv):
        return show_help(__doc__, "export", ExportConfig)
    config = read_arguments("export", ExportConfig, argv)
    if config.output_path is None:
        raise ConfigError(f"output_path is missing. {EXAMPLE}")
    if config.model_name_or_path is None and config.lora_path is None and config.prefix_path is None:
        raise ConfigError(f"model_name_or_path is missing: no model is named. {EXAMPLE}")
    if config.format in ("hf", "peft"):
        return _export_hugging_face(config) if config.format == "hf" else _export_peft(config)
    return _export_graph(config)


def _export_hugging_face(config: ExportConfig) -> int:
    if config.prefix_path is not None:
        raise ConfigError(
            "format: hf writes a model's weights, and a Prefix-Tuning adapter cannot be merged into them. --format "
            "paddle and onnx export it beside a graph."
        )
    from paddlesft.cli.export_hf import export_and_show

    return export_and_show(
        config.model_name_or_path, config.output_path, config.overwrite, config.lora_path, config.dtype
    )


def _export_peft(config: ExportConfig) -> int:
    from rich.console import Console

    from paddlesft.checkpoints.peft_adapters import export_peft
    from paddlesft.inference.loading import adapter_kind

    adapter, base = config.lora_path, config.model_name_or_path
    if adapter is None and base is not None and adapter_kind(Path(base)) == "lora":
        adapter, base = base, None
    if adapter is None or config.prefix_path is not None:
        raise ConfigError(
            "format: peft writes a LoRA adapter: name its directory with --lora_path. Prefix-Tuning adapters cannot be "
            "written: PEFT counts its virtual tokens as positions, and those of this package take none, so that the "
            "same keys and values would compute something else there."
        )
    notes = export_peft(adapter, config.output_path, base, config.overwrite)
    console = Console(highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}", markup=False)
    console.print(f"Directory: {config.output_path}", markup=False)
    console.print(f'Next, in Python: peft.PeftModel.from_pretrained(base, "{config.output_path}")', markup=False)
    return 0


def _export_graph(config: ExportConfig) -> int:
    from rich.console import Console

    from paddlesft.cli.predict import about_quant_type
    from paddlesft.directories import refuse_taken
    from paddlesft.export.directory import export_graph
    from paddlesft.inference.device import use_device
    from paddlesft.inference.loading import load_for_inference
    from paddlesft.models.load import refuse_graph

    console = Console(highlight=False, soft_wrap=True)
    refuse_taken(Path(config.output_path), config.overwrite)
    write = _writer(config.format, config.onnx_compute)
    device = use_device(config.device)
    if config.model_name_or_path is not None:
        refuse_graph(Path(config.model_name_or_path))
    ranks, rank = _ranks(config)
    loaded = load_for_inference(
        config.model_name_or_path, config.lora_path, config.prefix_path, config.dtype, config.chat_template,
        base_precision=config.base_precision, tensor_parallel=(ranks, rank),
    )  # fmt: skip
    if ranks > 1:
        from paddlesft.export.tensor_parallel import export_ranks

        tell = (lambda text: console.print(f"{text[0].upper()}{text[1:]} ...")) if rank == 0 else (lambda text: None)
        report = export_ranks(
            loaded, config.output_path, config.model_name_or_path, config.overwrite, config.check_tokens,
            config.chat_template, tell,
        )  # fmt: skip
        if rank == 0:
            _show(console, report, config.dtype)
        return 0
    if config.quant_type is not None:
        said = about_quant_type(config.quant_type, loaded.directory, loaded.base.formats)
        console.print(f"Note: {said}", markup=False)
    adapter = f" with {loaded.adapter_kind} adapter {loaded.adapter}" if loaded.adapter else ""
    stored = f" ({loaded.base.said})" if loaded.base.said else ""
    console.print(f"Model: {loaded.directory}{stored}{adapter}, {loaded.model.config.dtype} on {device}", markup=False)
    report = export_graph(
        loaded, config.output_path, write, config.model_name_or_path, config.overwrite, config.check_tokens,
        config.chat_template, lambda text: console.print(f"{text[0].upper()}{text[1:]} ...", markup=False),
    )  # fmt: skip
    _show(console, report, config.dtype)
    return 0


def _ranks(config: ExportConfig) -> tuple[int, int]:
    """Return how many ranks a launcher has started to share the layers, and which of them this is."""
    ranks = int(os.environ.get("PADDLE_TRAINERS_NUM") or 1)
    if ranks < 2:
        return 1, 0
    found = "format: onnx" if config.format == "onnx" else "an adapter"
    if config.format == "onnx" or config.lora_path is not None or config.prefix_path is not None:
        raise ConfigError(
            f"Ranks export float models as graphs of Paddle, and {found} was asked for. Start paddlesft export without "
            "paddle.distributed.launch, or merge the adapter first: paddlesft merge-lora."
        )
    from paddlesft.models.load import load_config, paddle_directory
    from paddlesft.models.resolve import find_model
    from paddlesft.parallel.tensor_ranks import refuse_indivisible, start_ranks

    model = load_config(paddle_directory(find_model(config.model_name_or_path)))
    refuse_indivisible(model, ranks, "export the whole model")
    return start_ranks()


def _writer(format: str, onnx_compute: str) -> Any:
    """Return what writes a graph of this format."""
    if format == "onnx":
        from paddlesft.export.onnx_graph import write_onnx_graph

        return partial(write_onnx_graph, compute=onnx_compute)
    if onnx_compute != "exact":
        raise ConfigError(f"onnx_compute {onnx_compute} needs format onnx; format is {format}.")
    from paddlesft.export.static_graph import write_static_graph

    return write_static_graph


def _show(console: Any, report: Any, asked: str | None) -> None:
    from rich import box
    from rich.table import Table

    record, checked = report.record, report.checked
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("prompt", no_wrap=True)
    for name in ("tokens", "new, equal", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    word = "close" if record.rounds_activations else "ties"
    for one in checked.prompts:
        ties = f" ({one.ties} {word})" if one.ties else ""
        text = " ".join(one.text.split())
        table.add_row(
            text if len(text) <= 36 else f"{text[:33]}...", str(one.prompt_tokens),
            f"{one.equal}/{one.new_tokens}{ties}", f"{one.max_difference:.1e}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"Checked: the written graph, in one ragged batch and one by one, against PaddleNLP's forward pass in memory; "
        f"logits may differ by {checked.bound:.1e} (they reach {checked.largest_logit:.1f})"
    )
    if checked.ties:
        said = "A tie: both tokens are equally likely but for rounding"
        if record.rounds_activations:
            said = f"Close: the graph, which rounds activations, took another of the likely tokens {checked.ties} times"
        console.print(f"{said}; both go on with the model's.")
    console.print(f"Exported in {report.seconds:.1f} s, {report.trace_seconds:.1f} s of it for tracing and writing")
    console.print(f"  program   {describe(record)}", markup=False)
    largest = sorted(record.sizes.items(), key=lambda item: -item[1])
    sizes = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in largest)
    console.print(f"  files     {sizes}", markup=False)
    rounded = f", weights in {record.formats}" if record.formats else ""
    console.print(f"  type      {record.dtype}{rounded}")
    if asked not in (None, record.dtype):
        console.print(f"            {asked} was asked for and has no CPU kernels: run this on a GPU for a graph in it")
    if report.adapter:
        console.print(f"  adapter   {report.adapter}")
    console.print(f"Directory: {report.output}", markup=False)
    if record.ranks > 1:
        console.print(f"  ranks     rank_0 to rank_{record.ranks - 1}, rank_mapping.csv; every rank ran its program")
        return
    console.print(
        f"Next: paddlesft predict --mode static --model_name_or_path {shlex.quote(str(report.output))}", markup=False
    )


def describe(record: Any) -> str:
    """Say what kind of program a graph is, and why."""
    if record.format == "onnx":
        return f"{record.program} (ONNX)"
    if record.program.endswith(".json"):
        return f"{record.program} (the new IR; Paddle {record.paddle_version} writes no .pdmodel)"
    return f"{record.program} (the old IR: as Paddle {record.paddle_version} writes it here)"
