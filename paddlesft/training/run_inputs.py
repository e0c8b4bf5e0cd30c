"""What a run reads before it trains: the base model's directory, tokenizer and template, the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.config.derived import derived_src_length
from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset, build_dataset
from paddlesft.data.prompt_marks import check_marks
from paddlesft.data.rendering import Renderer
from paddlesft.data.report import DataReport, first_sample_view
from paddlesft.data.templates import load_template
from paddlesft.data.vocabulary import check_vocabulary
from paddlesft.errors import ConfigError
from paddlesft.models.families import family_of
from paddlesft.models.load import load_config
from paddlesft.models.resolve import resolve_model
from paddlesft.models.tokenizers import load_tokenizer
from paddlesft.training.weights_io import TextSide

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.training.events import Observer


@dataclass
class RunInputs:
    """What a run reads.

    Attributes:
        base: directory of the base model.
        tokenizer: its tokenizer, or the one of ``tokenizer_name_or_path``.
        text_side: what of it goes into the directories that the run writes.
        renderer: conversations -> tokens.
        stop_token_ids: ids that end a reply.
        datasets: by split: train, eval, test; only those that the run needs.
        reports: about each of them.
    """

    base: Path
    tokenizer: Any
    text_side: TextSide
    renderer: Renderer
    stop_token_ids: list[int]
    datasets: dict[str, SFTDataset]
    reports: dict[str, DataReport]

    def collator(self, run_config: RunConfig) -> Collator:
        """Return what turns rows into batches."""
        data = run_config.data
        width = data.max_length if data.pad_to_max_length else None
        return Collator(self.renderer.pad_token_id, data.pad_to_multiple_of, width)


def read_inputs(run_config: RunConfig, observer: Observer) -> RunInputs:
    """Resolve, load and prepare everything that a run reads, but for the weights.

    Args:
        run_config: the resolved config.
        observer: told about each data set and the first training row.

    Returns:
        The inputs.

    Raises:
        ConfigError: no model is named, packing is asked of a family that cannot, or the template lacks its marks.
        ModelDirectoryError: the model or tokenizer cannot be used, or not together.
        DataError: the data cannot be used.
    """
    model, data, training = run_config.model, run_config.data, run_config.training
    if not model.model_name_or_path:
        raise ConfigError(
            "model_name_or_path is not set: name a model directory, a hub name, or embedded:smollm2 (the small model "
            "that comes with the demo)."
        )
    base = resolve_model(model.model_name_or_path)
    config = load_config(base)
    family = family_of(config)
    if data.packing and not family.packing:
        raise ConfigError(
            f"packing: true, but packed rows are not exact for family {family.name}: {family.packing_refusal}. Set "
            "packing to false; length_grouping: true saves padding too."
        )
    limit = family.context_length(config)
    if limit and data.max_length > limit and family.learned_positions:
        _keep_to_positions(run_config, limit)
    elif limit and data.max_length > limit:
        observer.warning(f"max_length {data.max_length} is longer than the {limit} positions this model was made for")
    own_tokenizer = bool(model.tokenizer_name_or_path)
    tokenizer_dir = resolve_model(model.tokenizer_name_or_path) if own_tokenizer else base
    tokenizer = load_tokenizer(tokenizer_dir)
    template = load_template(tokenizer, data.chat_template, tokenizer_dir, family.default_template)
    renderer = Renderer(tokenizer, template, data.system_prompt, family.one_reply_per_row)
    check_vocabulary(renderer.encoder, config.vocab_size, tokenizer_dir, base)
    check_marks(renderer, family)
    template_file = Path(data.chat_template).expanduser() if data.chat_template else None
    text_side = TextSide(tokenizer_dir, _template_file(template_file), own_tokenizer)
    datasets, reports = {}, {}
    for split, wanted in {"train": training.do_train, "eval": training.do_eval, "test": training.do_predict}.items():
        if not wanted:
            continue
        datasets[split], reports[split] = build_dataset(data, renderer, split, training.seed)
        observer.data(split, reports[split])
    if "train" in datasets:
        observer.first_sample(first_sample_view(datasets["train"], renderer))
    stop = list(renderer.stop_token_ids)
    return RunInputs(base, tokenizer, text_side, renderer, stop, datasets, reports)


def _keep_to_positions(run_config: RunConfig, limit: int) -> None:
    """Lower the default of ``max_length`` to the positions that a model has learned; refuse a higher one.

    Raises:
        ConfigError: ``max_length`` was set and is higher, or ``src_length`` was and leaves no room for a reply.
    """
    if run_config.was_set("max_length"):
        raise ConfigError(
            f"max_length: found {run_config.data.max_length}, but this model knows {limit} positions: they are "
            f"learned one by one, and there are no more. Set max_length to {limit} or less."
        )
    run_config.derive("max_length", limit, "the positions that the model has learned")
    shorter = derived_src_length(run_config.data)
    if shorter is not None and run_config.was_set("src_length"):
        raise ConfigError(
            f"src_length: found {run_config.data.src_length}, but this model knows {limit} positions for prompt and "
            f"reply together. Set src_length to {limit - 1} or less."
        )
    if shorter is not None:
        run_config.derive("src_length", shorter, "half of max_length")


def _template_file(path: Path | None) -> Path | None:
    if path is not None and path.is_dir():
        path = next((path / n for n in ("chat_template.json", "chat_template.jinja") if (path / n).is_file()), None)
    return path if path is not None and path.is_file() else None
