"""A model directory, with or without an adapter, made ready to generate: model, tokenizer, renderer, stop tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.data.vocabulary import check_vocabulary
from paddlesft.errors import ModelDirectoryError
from paddlesft.inference.adapter_base import ADAPTER_CONFIGS, BaseWeights, Precision, base_of, settle_base
from paddlesft.inference.graph_loading import open_graph, origin_of
from paddlesft.models.directory import TOKENIZER_FILES, read_object
from paddlesft.models.families import family_of
from paddlesft.models.graph_directory import holds_graph, read_record
from paddlesft.models.load import load_config, load_model, paddle_directory, quiet_paddlenlp, usable_dtype
from paddlesft.models.provenance import fingerprint, read_provenance
from paddlesft.models.quantized.origin import in_words
from paddlesft.models.resolve import find_model
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.tuning.lora import load_lora
from paddlesft.tuning.prefix import load_prefix

logger = logging.getLogger("paddlesft")

Mode = Literal["dynamic", "static"]
NO_MODEL = (
    "No model is named. Give --model_name_or_path DIR (or embedded:smollm2), --lora_path DIR or --prefix_path DIR."
)


@dataclass
class Loaded:
    """A model ready to generate.

    Attributes:
        model: plain, or wrapped with its adapter, in evaluation mode; or a static graph.
        tokenizer: the adapter's when it brings one, else the base's.
        renderer: turns conversations into prompts.
        stop_token_ids: ids that end a reply.
        pad_token_id: fills shorter prompts.
        directory: the base model's directory.
        base: which of its weights are used.
        adapter: the adapter's directory, or None.
        adapter_kind: "lora", "prefix" or None.
    """

    model: Any
    tokenizer: Any
    renderer: Renderer
    stop_token_ids: list[int]
    pad_token_id: int
    directory: Path
    base: BaseWeights
    adapter: Path | None = None
    adapter_kind: str | None = None

    @property
    def context_length(self) -> int | None:
        """How many tokens a prompt and its reply may have together."""
        return family_of(self.model.config).context_length(self.model.config)

    def identity(self) -> dict[str, str]:
        """Return what decides about the replies: ``{"model": fingerprint, "adapter": fingerprint, ...}``."""
        facts = {"model": fingerprint(self.directory)}
        if self.adapter is not None:
            facts["adapter"] = fingerprint(self.adapter)
        if holds_graph(self.directory):
            facts["graph"] = read_record(self.directory).format
        if self.base.how is not None:
            facts["rounded_to"] = in_words(self.base.how)
        return facts


def load_for_inference(
    model: str | Path | None,
    lora_path: str | Path | None = None,
    prefix_path: str | Path | None = None,
    dtype: str | None = None,
    chat_template: str | None = None,
    system_prompt: str | None = None,
    base_precision: Precision | None = None,
    mode: Mode | None = None,
    tensor_parallel: tuple[int, int] = (1, 0),
) -> Loaded:
    """Load a model, its adapter, tokenizer and template; or a static graph with its tokenizer and template.

    Args:
        model: name or directory of the base, of a complete fine-tuned model or of a static graph; an adapter's
            directory is taken as ``lora_path`` or ``prefix_path``. None: the base that the adapter names.
        lora_path: a LoRA adapter's directory.
        prefix_path: a prefix adapter's directory.
        dtype: see ``paddlesft.models.load_model``.
        chat_template: see ``paddlesft.data.templates.load_template``; None: the one the adapter or model was trained
            with, else the tokenizer's own.
        system_prompt: system text of conversations that have none; None: the one the adapter or model was trained
            with, if any.
        base_precision: see ``adapter_base.settle_base``.
        mode: insists on a model in memory (dynamic) or on a graph (static); None takes what the directory holds.
        tensor_parallel: see ``paddlesft.models.load_model``; without an adapter.

    Raises:
        ModelDirectoryError: nothing to load was named, the base of the adapter is not there, it is another model
            than the adapter was trained on, it has no weights in ``base_precision``, a graph is asked for what it
            cannot do, or the tokenizer has ids that the model does not know.
    """
    if model is not None and lora_path is None and prefix_path is None:
        kind = adapter_kind(Path(model))
        if kind is not None:
            model, lora_path, prefix_path = None, *((model, None) if kind == "lora" else (None, model))
    if lora_path is not None and prefix_path is not None:
        raise ModelDirectoryError(
            f"Both lora_path ({lora_path}) and prefix_path ({prefix_path}) are given; a model runs with one adapter. "
            "Merge the LoRA into the base first (paddlesft merge-lora), or leave one out."
        )
    adapter = Path(lora_path or prefix_path) if lora_path or prefix_path else None
    kind = None if adapter is None else ("lora" if lora_path else "prefix")
    if adapter is not None:
        check_adapter(adapter, kind)
    if model is None and adapter is None:
        raise ModelDirectoryError(NO_MODEL)
    directory = base_of(adapter) if model is None else find_model(model)
    settle_mode(directory, mode)
    if holds_graph(directory):
        base = settle_graph(directory, adapter, dtype, base_precision)
    else:
        base = settle_base(adapter, paddle_directory(directory), base_precision)
    directory = base.directory
    config = load_config(directory)
    renderer = load_renderer(config, directory, adapter, chat_template, system_prompt)
    pad_token_id = renderer.tokenizer.pad_token_id or 0
    loaded = load_weights(directory, base, dtype, pad_token_id, tensor_parallel)
    if adapter is not None:
        with quiet_paddlenlp():
            loaded = load_lora(loaded, adapter) if kind == "lora" else load_prefix(loaded, adapter)
        loaded.eval()
    return Loaded(
        model=loaded,
        tokenizer=renderer.tokenizer,
        renderer=renderer,
        stop_token_ids=stop_tokens(renderer, directory),
        pad_token_id=pad_token_id,
        directory=directory,
        adapter=adapter,
        adapter_kind=kind,
        base=base,
    )


def load_renderer(
    config: Any,
    directory: Path,
    adapter: Path | None,
    chat_template: str | None = None,
    system_prompt: str | None = None,
    tokenizer: Any = None,
) -> Renderer:
    """Load what turns conversations into prompts of a model with an adapter, or without.

    Args:
        config: the model's.
        directory: of the model, or of a static graph.
        adapter: its directory, or None.
        chat_template: see ``load_for_inference``.
        system_prompt: see ``load_for_inference``.
        tokenizer: the one in ``tokenizer_directory(directory, adapter)``, if it is loaded already.

    Raises:
        ModelDirectoryError: the tokenizer cannot be loaded, or has ids that the model does not know.
        DataError: the template cannot be loaded or used.
    """
    place = tokenizer_directory(directory, adapter)
    tokenizer = load_tokenizer(place) if tokenizer is None else tokenizer
    if not chat_template and adapter is not None and brings_template(adapter):
        chat_template = str(adapter)
    chat_template = chat_template or recorded("chat_template", adapter, directory)
    family = family_of(config)
    template = load_template(tokenizer, chat_template, place, family.default_template)
    system_prompt = system_prompt or recorded("system_prompt", adapter, directory)
    renderer = Renderer(tokenizer, template, system_prompt, family.one_reply_per_row)
    check_vocabulary(renderer.encoder, config.vocab_size, place, directory)
    return renderer


def tokenizer_directory(directory: Path, adapter: Path | None) -> Path:
    """Return where the tokenizer is: with the adapter if that brings one, else with the model."""
    return adapter if adapter is not None and brings_tokenizer(adapter) else directory


def load_weights(
    directory: Path, base: BaseWeights, dtype: str | None, pad_token_id: int, tensor_parallel: tuple[int, int] = (1, 0)
) -> Any:
    """Load a model in evaluation mode, without adapter, or open a static graph; arguments as in ``Loaded``."""
    if holds_graph(directory):
        return open_graph(directory, pad_token_id)
    model = load_model(directory, dtype=dtype, tensor_parallel=tensor_parallel, quantize=base.how)
    model.eval()
    return model


def settle_graph(directory: Path, adapter: Path | None, dtype: str | None, precision: Precision | None) -> BaseWeights:
    """Say what a static graph computes with; refuse what it cannot be given: it is what it was when it was written.

    Raises:
        ModelDirectoryError: an adapter, another type or other weights are asked of it.
    """
    record, source = read_record(directory), origin_of(directory)
    model = source or "the model that it was made from"
    if adapter is not None:
        raise ModelDirectoryError(
            f"{directory} holds a static graph, which takes no adapter ({adapter}). Export {model} with the adapter "
            "(paddlesft export --lora_path or --prefix_path), or give that model instead of the graph."
        )
    if dtype is not None and dtype != record.dtype and usable_dtype(dtype) == record.dtype:
        logger.warning(
            "%s: %s has no CPU kernels; the graph computes in %s, as it was exported.", directory, dtype, record.dtype
        )
    elif dtype is not None and dtype != record.dtype:
        raise ModelDirectoryError(
            f"dtype: found {dtype}, but {directory} holds a static graph of {record.dtype}. Leave dtype out, or export "
            f"{model} with --dtype {dtype}."
        )
    if precision is not None:
        raise ModelDirectoryError(
            f"base_precision: found {precision}, but {directory} holds a static graph, whose weights are settled. "
            f"Leave it out, or give {model}."
        )
    weights = f", weights in {record.formats}" if record.formats else ""
    return BaseWeights(directory, None, record.formats, f"{record.format} graph{weights}")


def settle_mode(directory: Path, mode: Mode | None) -> None:
    """Refuse to run a model in memory as a graph, or the other way round.

    Raises:
        ModelDirectoryError: with the command that makes the one that is missing, or the directory that is the other.
    """
    if mode == "static" and not holds_graph(directory):
        raise ModelDirectoryError(
            f"mode: static runs an exported graph, and {directory} holds a model. Export it once and give the new "
            f"directory:\n  paddlesft export --model_name_or_path {directory} --output_path GRAPH_DIR\n"
            "Or leave mode out."
        )
    if mode == "dynamic" and holds_graph(directory):
        source = origin_of(directory)
        named = f"{source}, from which it was made" if source else "the model directory from which it was made"
        raise ModelDirectoryError(
            f"mode: dynamic runs a model in memory, and {directory} holds a static graph. Give {named}, or leave mode "
            "out."
        )


def adapter_kind(directory: Path) -> str | None:
    """Return "lora" or "prefix" for an adapter's directory, None for anything else."""
    if (directory / "config.json").is_file():
        return None
    return next((kind for kind, name in ADAPTER_CONFIGS.items() if (directory / name).is_file()), None)


def brings_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer, more than its chat template."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES if not name.startswith("chat_template"))


def brings_template(directory: Path) -> bool:
    """Whether a directory holds a chat template of its own."""
    return any((directory / f"chat_template{ending}").is_file() for ending in (".json", ".jinja"))


def check_adapter(adapter: Path, kind: str) -> None:
    """Refuse a directory that holds no adapter of this kind; say which kind it holds."""
    if not adapter.is_dir():
        raise ModelDirectoryError(f"{kind}_path: {adapter} is not a directory. Give the directory the training wrote.")
    if (adapter / ADAPTER_CONFIGS[kind]).is_file():
        return
    other = adapter_kind(adapter)
    if other is not None:
        advice = f"it holds a {other} adapter: give it as {other}_path"
    elif (adapter / "adapter_config.json").is_file():
        advice = f"it is an adapter of Hugging Face PEFT: paddlesft import-peft {adapter} NEW_DIR makes one for here"
    elif (adapter / "config.json").is_file():
        advice = "it holds a complete model: give it as model_name_or_path"
    else:
        found = ", ".join(sorted(path.name for path in adapter.iterdir())[:6]) or "nothing"
        advice = f"found there: {found}"
    raise ModelDirectoryError(f"{kind}_path: {adapter} has no {ADAPTER_CONFIGS[kind]}; {advice}.")


def recorded(fact: str, adapter: Path | None, directory: Path) -> Any:
    """Return what a run recorded with its adapter or model under ``fact``, or None."""
    for place in filter(None, (adapter, directory)):
        value = read_provenance(place).get(fact)
        if value:
            return value
    return None


def stop_tokens(renderer: Renderer, directory: Path) -> list[int]:
    """Return every id that ends a reply: the template's, the tokenizer's and those of generation_config.json."""
    ids = list(renderer.stop_token_ids)
    if renderer.tokenizer.eos_token_id is not None:
        ids.append(renderer.tokenizer.eos_token_id)
    path = directory / "generation_config.json"
    if path.is_file():
        value = read_object(path).get("eos_token_id")
        ids += value if isinstance(value, list) else [value] if value is not None else []
    return sorted(set(ids))
