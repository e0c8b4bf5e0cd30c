"""Where the tokens of a blank-filling row stand, see ``decoders/blank_filling.py``; plain numpy, from the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlesft.errors import DataError, ModelDirectoryError
from paddlesft.models.families import family_of


@dataclass(frozen=True)
class Marks:
    """What a family's rows are read by.

    Attributes:
        words: how prompts end, for messages.
        start_id: the token behind which the reply is written.
        blank_ids: tokens that stand for the blank: the first group of which a prompt has one.
        last_position: the last one that the model has learned; None where they are computed.
    """

    words: str
    start_id: int
    blank_ids: Sequence[Sequence[int]]
    last_position: int | None = None

    def places(self, tokens: np.ndarray, config: Any) -> tuple[np.ndarray, int]:
        """Find where the tokens of one row stand.

        Args:
            tokens: int64 [s], the row from its beginning.
            config: of the model, for messages.

        Returns:
            Positions and block positions, int64 [2, s], and the number of tokens before the start mark.

        Raises:
            DataError: the row has no blank or start mark, or is longer than the model has positions for.
        """
        start, blank = self._found_in(tokens, config)
        steps = np.arange(len(tokens))
        positions = np.stack([np.where(steps < start, steps, blank), np.maximum(steps - start + 1, 0)])
        last = int(positions.max(initial=0))
        if self.last_position is not None and last > self.last_position:
            raise DataError(
                f"A row has a token at position {last}, behind the last of the {self.last_position + 1} that this "
                "model has learned. Lower max_length."
            )
        return positions, start

    def _found_in(self, tokens: np.ndarray, config: Any) -> tuple[int, int]:
        """Indices of the start mark and of the blank before it."""
        starts = np.flatnonzero(tokens == self.start_id)
        if len(starts):
            for group in self.blank_ids:
                blanks = np.flatnonzero(np.isin(tokens[: starts[0]], group))
                if len(blanks):
                    return int(starts[0]), int(blanks[0])
        missing = "the token that a reply begins behind" if not len(starts) else "a mask token before the reply"
        family = family_of(config)
        raise DataError(
            f"A prompt of {len(tokens)} tokens has no {self.words}: {missing} is missing. Models of family "
            f"{family.name} cannot read it. Set chat_template to {family.chat_template}, or to a template "
            f"whose prompts end in {self.words}."
        )


def chatglm_marks(config: Mapping[str, Any]) -> Marks:
    """Return the marks of a ChatGLM model: ``[gMASK]`` or, where that is absent, ``[MASK]``, and ``<sop>``."""
    return Marks("[gMASK]<sop>", config["bos_token_id"], ([config["gmask_token_id"]], [config["mask_token_id"]]))


def glm_marks(config: Mapping[str, Any]) -> Marks:
    """Return the marks of a GLM model: ``[gMASK]``, ``[sMASK]`` or ``[MASK]``, and ``<|startofpiece|>``.

    Raises:
        ModelDirectoryError: the config lacks one of their ids.
    """
    ids = [config.get(f"{name}_token_id") for name in ("sop", "gmask", "smask", "mask")]
    for name, found in zip(("sop", "gmask", "smask", "mask"), ids):
        if found is None:
            raise ModelDirectoryError(
                f"config.json has no {name}_token_id, and there is no tokenizer beside it to take the id from. Copy "
                "the tokenizer's files into the model's directory."
            )
    return Marks("[gMASK]<|endoftext|><|startofpiece|>", ids[0], (ids[1:],), config["max_sequence_length"])
