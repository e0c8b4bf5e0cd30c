"""What turns a run's rows into tokens, checked against the model that they are for; ``check-data`` uses it too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paddlesft.config.derived import derived_src_length
from paddlesft.data.prompt_marks import check_marks
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.data.vocabulary import check_vocabulary
from paddlesft.errors import ConfigError
from paddlesft.models.families import family_of
from paddlesft.models.load import load_config
from paddlesft.models.resolve import resolve_model
from paddlesft.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from paddlesft.config import RunConfig


class RunRenderer(NamedTuple):
    """How a run's rows become tokens.

    Attributes:
        base: directory of the base model.
        tokenizer_directory: the same, or the directory of ``tokenizer_name_or_path``.
        tokenizer: what is in it.
        renderer: conversations -> tokens.
    """

    base: Path
    tokenizer_directory: Path
    tokenizer: Any
    renderer: Renderer


def read_renderer(run_config: RunConfig, warn: Callable[[str], None]) -> RunRenderer:
    """Load the tokenizer and template of a run whose model is named; keep its rows to what the model can read.

    Args:
        run_config: ``max_length`` and ``src_length`` are lowered where they were not set and the model has an end.
        warn: told what the user should look at.

    Raises:
        ConfigError: packing is asked of a family that cannot, the template lacks the family's marks, or ``max_length``
            is set beyond the last position of the model.
        ModelDirectoryError: the model or tokenizer cannot be used, or not together.
        DataError: the template cannot be used.
    """
    model, data = run_config.model, run_config.data
    base = resolve_model(model.model_name_or_path)
    config = load_config(base)
    family = family_of(config)
    if data.packing and not family.packing:
        raise ConfigError(
            f"packing: true, but packed rows are not exact for family {family.name}: {family.packing_refusal}. Set "
            "packing to false; length_grouping: true saves padding too."
        )
    limit = family.context_length(config)
    if limit and data.max_length > limit and family.positions_end:
        _keep_to_positions(run_config, limit)
    elif limit and data.max_length > limit:
        warn(f"max_length {data.max_length} is longer than the {limit} positions this model was made for")
    directory = resolve_model(model.tokenizer_name_or_path) if model.tokenizer_name_or_path else base
    tokenizer = load_tokenizer(directory)
    template = load_template(tokenizer, data.chat_template, directory, family.default_template)
    renderer = Renderer(tokenizer, template, data.system_prompt, family.one_reply_per_row)
    check_vocabulary(renderer.encoder, config.vocab_size, directory, base)
    check_marks(renderer, family)
    return RunRenderer(base, directory, tokenizer, renderer)


def _keep_to_positions(run_config: RunConfig, limit: int) -> None:
    """Lower the default of ``max_length`` to the last position of a model; refuse a higher one.

    Raises:
        ConfigError: ``max_length`` was set and is higher, or ``src_length`` was and leaves no room for a reply.
    """
    if run_config.was_set("max_length"):
        raise ConfigError(
            f"max_length: found {run_config.data.max_length}, but this model knows {limit} positions: they are a table "
            f"that ends there. Set max_length to {limit} or less."
        )
    run_config.derive("max_length", limit, "the positions that the model has")
    shorter = derived_src_length(run_config.data)
    if shorter is not None and run_config.was_set("src_length"):
        raise ConfigError(
            f"src_length: found {run_config.data.src_length}, but this model knows {limit} positions for prompt and "
            f"reply together. Set src_length to {limit - 1} or less."
        )
    if shorter is not None:
        run_config.derive("src_length", shorter, "half of max_length")
