"""What a run reads before it trains: the base model's directory, tokenizer and template, the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset, build_dataset
from paddlesft.data.rendering import Renderer
from paddlesft.data.report import DataReport, first_sample_view
from paddlesft.errors import ConfigError
from paddlesft.models.quantized.origin import records_in, refuse_rounding_again
from paddlesft.training.run_renderer import read_renderer
from paddlesft.training.weights_io import TextSide
from paddlesft.tuning.prepare import base_format, refuse_untrainable

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
        ConfigError: no model is named, or the config asks for what the model cannot (``read_renderer``,
            ``refuse_untrainable``).
        ModelDirectoryError: the model or tokenizer cannot be used, or not together; or a quantized model is to be
            quantized while it is loaded.
        DataError: the data cannot be used.
    """
    model, data, training = run_config.model, run_config.data, run_config.training
    if not model.model_name_or_path:
        raise ConfigError(
            "model_name_or_path is not set: name a model directory, a hub name, or embedded:smollm2 (the small model "
            "that comes with the demo)."
        )
    base, tokenizer_dir, tokenizer, renderer = read_renderer(run_config, observer.warning)
    refuse_untrainable(run_config, records_in(base))
    if (how := base_format(run_config)) is not None:
        refuse_rounding_again(base, how)
    text_side = TextSide(tokenizer_dir, template_file_of(data.chat_template), bool(model.tokenizer_name_or_path))
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


def template_file_of(chat_template: str | None) -> Path | None:
    """Return the file that a config's ``chat_template`` means; None for a built-in's name and for the model's own."""
    if not chat_template:
        return None
    path = Path(chat_template).expanduser()
    if path.is_dir():
        path = next((path / n for n in ("chat_template.json", "chat_template.jinja") if (path / n).is_file()), path)
    return path if path.is_file() else None
