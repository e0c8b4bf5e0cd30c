"""A model directory, with or without an adapter -> a directory with its static graph, proved before it appears."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.peft import LoRAModel

from paddlesft.checkpoints.verify import RELATIVE_BOUND, release
from paddlesft.directories import new_directory
from paddlesft.errors import UserError
from paddlesft.export.check import (
    NEW_TOKENS,
    ROUNDED_ACTIVATIONS,
    ROUNDED_BY_BLOCKS,
    CheckReport,
    GraphDiffers,
    Prompt,
    Reply,
    check_prompts,
    compare_with,
    replies_of,
)
from paddlesft.export.sampling import SamplingGraph, disagreements, write_sampling
from paddlesft.inference.loading import (
    Loaded,
    brings_template,
    brings_tokenizer,
    load_for_inference,
    recorded,
)
from paddlesft.models.decoders import decoder_of
from paddlesft.models.directory import copy_tokenizer
from paddlesft.models.graph_directory import PREFIX_FILE, GraphRecord, graph_files, write_record
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.provenance import base_facts, fingerprint, write_provenance
from paddlesft.models.quantized.directory import quantized_layers
from paddlesft.models.steps import refuse_without_step, step_of

WriteGraph = Callable[[paddle.nn.Layer, Path], GraphRecord]
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        output: the new directory.
        record: what its graph.json says.
        checked: the graph against the model in memory.
        adapter: what became of the adapter, in words; "" without one.
        trace_seconds: wall-clock time of tracing and writing.
        seconds: of everything.
    """

    output: Path
    record: GraphRecord
    checked: CheckReport
    adapter: str
    trace_seconds: float
    seconds: float


def export_graph(
    loaded: Loaded,
    output: str | Path,
    write: WriteGraph,
    name: str | None = None,
    overwrite: bool = False,
    new_tokens: int = NEW_TOKENS,
    chat_template: str | None = None,
    on_stage: OnStage = lambda text: None,
) -> ExportReport:
    """Write a static graph of a model that was loaded, complete and proved, or not at all.

    The model is let go before the graph is opened; while it is traced and written there may be two copies of weights.

    Args:
        loaded: the model; a LoRA adapter is added to float weights in place, so that the graph is the plain model's.
            ``loaded.model`` is None afterwards.
        output: the directory to create.
        write: what writes the graph: ``write_static_graph`` or its like for another format.
        name: what the user calls the base.
        overwrite: replace ``output`` when it has content.
        new_tokens: tokens that are compared for each prompt.
        chat_template: a built-in name or a file that the user gave instead of the model's template, and ``loaded`` has.
        on_stage: told what is done next.

    Raises:
        UserError: the family has no step, or ``output`` has content or is an input.
        GraphDiffers: the graph, read back, does not compute what the model does; nothing is left behind.
    """
    began, output, model = time.perf_counter(), Path(output), loaded.model
    refuse_inputs(output, loaded)
    refuse_without_step(model)
    on_stage(f"the model in memory answers the questions of the check, {new_tokens} tokens each")
    prompts = prompts_of_check(loaded, new_tokens)
    replies = replies_of(model, prompts, new_tokens)
    share = share_of(model)
    adapter = settle_adapter(loaded)
    with new_directory(output, overwrite=overwrite) as scratch:
        on_stage("tracing and writing the graph")
        start = time.perf_counter()
        record = write(model, scratch)
        trace_seconds = time.perf_counter() - start
        record = replace(record, formats=loaded.base.formats, sampling=write_sampling(scratch))
        prefix = step_of(model).prefix_cache()
        if prefix is not None:
            np.save(scratch / PREFIX_FILE, prefix)
        sizes = {path.relative_to(scratch).as_posix(): path.stat().st_size for path in graph_files(scratch, record)}
        record = replace(record, sizes=sizes)
        write_record(record, scratch)
        write_beside(loaded, scratch, chat_template)
        facts = provenance_of(loaded, name, adapter, record, chat_template)
        write_provenance(scratch, **facts, fingerprint=fingerprint(scratch))
        del model
        loaded.model = None
        release()
        on_stage("checking the written graph against the model")
        share = max(share, ROUNDED_BY_BLOCKS) if record.rounds_activations else share
        checked = check_directory(scratch, loaded, replies, share)
        write_provenance(scratch, **facts, fingerprint=fingerprint(scratch), checked=checked.facts())
    return ExportReport(output, record, checked, adapter, trace_seconds, time.perf_counter() - began)


def refuse_inputs(output: Path, loaded: Loaded) -> None:
    """Refuse an output that is, or lies in, an input directory."""
    for kind, source in (("the model", loaded.directory), ("the adapter", loaded.adapter)):
        if source is not None and output.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"output_path: {output} lies in the directory of {kind}, {source}. Inputs are never changed: choose "
                "another directory."
            )


def prompts_of_check(loaded: Loaded, new_tokens: int) -> list[Prompt]:
    """Return the questions that fit into the model's context together with their replies.

    Raises:
        UserError: none does.
    """
    context = loaded.context_length
    prompts = check_prompts(loaded.renderer, None if context is None else context - new_tokens)
    shortest = len(prompts[0].ids)
    if context is not None and shortest + new_tokens > context:
        raise UserError(
            f"check_tokens: found {new_tokens}; the shortest question of the check has {shortest} tokens, and "
            f"{loaded.directory} holds {context} (context length of config.json). Allowed: 1 to {context - shortest}."
        )
    return prompts


def settle_adapter(loaded: Loaded) -> str:
    """Add a LoRA adapter to float weights; say what becomes of an adapter.

    A graph of base and adapter apart would compute two more products for each layer and every token.
    """
    if loaded.adapter is None:
        return ""
    if not isinstance(loaded.model, LoRAModel):
        return "prefix: its keys and values are the first columns of the cache"
    if quantized_layers(loaded.model):
        return "LoRA: kept beside the quantized weights, in float"
    with quiet_paddlenlp():
        loaded.model.merge()
    return "LoRA: added to the weights in memory"


def share_of(model: paddle.nn.Layer) -> float:
    """Return the share of the largest logit by which a graph's logits may differ from the model's."""
    if any(layer.activations for layer in quantized_layers(model).values()):
        return ROUNDED_ACTIVATIONS
    return RELATIVE_BOUND[str(decoder_of(model).lm.config.dtype)]


def write_beside(loaded: Loaded, directory: Path, chat_template: str | None = None) -> None:
    """Write what another model directory has, too: config, generation config, tokenizer, template."""
    with quiet_paddlenlp():
        decoder_of(loaded.model).lm.config.save_pretrained(str(directory))
    generation = loaded.directory / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    adapter = loaded.adapter
    copy_tokenizer(adapter if adapter is not None and brings_tokenizer(adapter) else loaded.directory, directory)
    templates = []
    if chat_template is not None:
        templates = [Path(chat_template)] if Path(chat_template).is_file() else []
    elif adapter is not None and brings_template(adapter):
        templates = list(adapter.glob("chat_template.*"))
    for path in directory.glob("chat_template.*") if templates else ():
        path.unlink()
    for path in templates:
        shutil.copyfile(path, directory / f"chat_template{path.suffix}")


def provenance_of(
    loaded: Loaded, name: str | None, adapter: str, record: GraphRecord, chat_template: str | None = None
) -> dict[str, Any]:
    """Return what paddlesft.json says, but for the fingerprint and the check."""
    facts: dict[str, Any] = {
        "kind": "graph",
        "source": "paddlesft export",
        "base": base_facts(loaded.directory, name),
        "dtype": record.dtype,
        "graph": {"format": record.format, "program": record.program, "sampling": record.sampling},
    }
    if record.formats:
        facts["formats"] = record.formats
    if loaded.adapter is not None:
        path = loaded.adapter.resolve()
        facts["adapter"] = {"path": str(path), "fingerprint": fingerprint(path), "how": adapter}
    if chat_template is not None:
        facts["chat_template"] = None if Path(chat_template).is_file() else chat_template
    elif loaded.adapter is None or not brings_template(loaded.adapter):
        facts["chat_template"] = recorded("chat_template", loaded.adapter, loaded.directory)
    facts["system_prompt"] = recorded("system_prompt", loaded.adapter, loaded.directory)
    return {key: value for key, value in facts.items() if value is not None}


def check_directory(directory: Path, loaded: Loaded, replies: list[Reply], share: float) -> CheckReport:
    """Open what was written, as later verbs do, and compare it with the model that it was made from.

    Raises:
        GraphDiffers: it renders other prompts, ends replies at other tokens, or computes or chooses other tokens.
    """
    opened = load_for_inference(directory)
    asked = [prompt.ids for prompt in check_prompts(opened.renderer, max(len(one.prompt.ids) for one in replies))]
    if asked != [reply.prompt.ids for reply in replies] or opened.stop_token_ids != loaded.stop_token_ids:
        raise GraphDiffers(
            "The exported tokenizer and template make other prompts, or other stop tokens, than the model's. It was "
            "not kept. Please report it with the model's name."
        )
    report = compare_with(opened.model, replies, share)
    report.refuse_faults()
    wrong = disagreements(SamplingGraph(directory / "sampling.json"), replies[-1].logits[-1], replies[-1].prompt.ids)
    if wrong:
        raise GraphDiffers("The exported choice of tokens is not the library's:\n  - " + "\n  - ".join(wrong))
    return report
