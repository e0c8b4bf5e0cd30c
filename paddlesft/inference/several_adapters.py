"""One base in memory, and adapters of which every row of a batch has its own, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from paddlesft.errors import UserError
from paddlesft.inference.key_value_cache import KeyValueCache
from paddlesft.inference.step_model import EagerModel
from paddlesft.models.families import family_of
from paddlesft.models.load import quiet_paddlenlp
from paddlesft.models.steps import step_of, step_refusal_of
from paddlesft.models.steps.inputs import StepInputs
from paddlesft.tuning.prefix import load_prefix
from paddlesft.tuning.row_lora import put_row_lora, read_row_lora


@dataclass(frozen=True)
class AdapterDirectory:
    """An adapter on disk: its directory, and its kind, "lora" or "prefix"."""

    path: Path
    kind: str


class AdaptedModel(EagerModel):
    """A base, and adapters over it by name; ``Row.adapter`` says which of them computes a row.

    LoRA adapters may differ in rank, scaling and targets, see ``tuning/row_lora.py``. The keys and values of prefixes
    are computed once.

    Args:
        model: a bare PaddleNLP model, which is changed in place.
        adapters: by name.
        pad_token_id: fills shorter rows; any valid id.

    Raises:
        UserError: the model has no step.
        ModelDirectoryError: an adapter does not fit the model, or cannot be had by single rows.
    """

    def __init__(self, model: paddle.nn.Layer, adapters: Mapping[str, AdapterDirectory], pad_token_id: int = 0) -> None:
        refuse_shared_base(model.config)
        model.eval()
        lora = {name: read_row_lora(model, one.path) for name, one in adapters.items() if one.kind == "lora"}
        prefixes = {}
        for name, one in adapters.items():
            if one.kind == "prefix":
                with quiet_paddlenlp():
                    tuned = load_prefix(model, one.path)
                tuned.eval()
                prefixes[name] = step_of(tuned).prefix_cache()
        self._chosen = put_row_lora(model, lora)
        self.adapters = tuple(adapters)
        super().__init__(model, pad_token_id)
        self.prefixes = prefixes

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> tuple[paddle.Tensor, paddle.Tensor]:
        unknown = sorted({name for name in inputs.adapters if name is not None} - set(self.adapters))
        if unknown:
            raise UserError(f"There is no adapter {', '.join(unknown)} here; there are {', '.join(self.adapters)}.")
        self._chosen.choose(inputs.adapters)
        return super().__call__(inputs, cache)


def refuse_shared_base(config: Any) -> None:
    """Refuse a model over which adapters cannot be chosen row by row.

    Args:
        config: the model's.

    Raises:
        UserError: it has no step, see ``models/steps/step.py``.
    """
    refusal = step_refusal_of(config)
    if refusal:
        raise UserError(
            f"Adapters by name need a model that is computed step by step, and this one (family "
            f"{family_of(config).name}) is not: {refusal}. Merge the adapter into it and serve the merged model: "
            "paddlesft merge-lora."
        )
