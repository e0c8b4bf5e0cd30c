"""What a step is told about its rows: positions, and which tokens each token sees.

Plain numpy, made from the content of config.json: a static graph is driven by the same code as a model in memory.

Shape legend: b rows, s tokens of this call, m columns of the cache, w columns of a row's tuned prefix (its first ones).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from paddlesft.models.blank_filling import Marks, chatglm_marks, glm_marks


@dataclass
class Row:
    """One text in the cache.

    Attributes:
        prompt: its first tokens.
        length: how many of its tokens have been run: they are in the cache, behind the prefix.
        prefix_length: w, columns of a tuned prefix; every token sees them, and they have no positions.
        adapter: which of the model's adapters computes it, where the model holds several; None: the base.
    """

    prompt: Sequence[int]
    length: int = 0
    prefix_length: int = 0
    adapter: str | None = None

    @property
    def columns(self) -> int:
        """Columns of the cache that are filled."""
        return self.prefix_length + self.length


@dataclass(frozen=True)
class StepInputs:
    """Arguments of one call, see ``DecoderStep.forward``.

    Attributes:
        input_ids: int64 [b, s].
        position_ids: int64 [b, s] or [b, 2, s].
        visible: bool [b, 1, s, m + s].
        last: int64 [b].
        adapters: of each row, see ``Row.adapter``; graphs and models with one adapter do not read it.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    visible: np.ndarray
    last: np.ndarray
    adapters: tuple[str | None, ...] = ()


class CausalInputs:
    """Inputs of models whose tokens see themselves and what stands before them.

    Args:
        config: the content of config.json.
        pad_token_id: fills rows that are shorter than others; any valid id.
    """

    whole_prompts: ClassVar[bool] = False  # a prompt has to be run in one call

    def __init__(self, config: Mapping[str, Any], pad_token_id: int = 0) -> None:
        self.config = config
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], columns: int) -> StepInputs:
        """Make the inputs of a call.

        Args:
            rows: in the order of the cache.
            tokens: the next tokens of each, none empty. Their number may differ.
            columns: m, at least those of the row that fills most.
        """
        counts = np.array([len(new) for new in tokens])
        width = int(counts.max())
        starts = np.array([row.length for row in rows])
        ids = np.full([len(rows), width], self.pad_token_id, dtype=np.int64)
        for index, new in enumerate(tokens):
            ids[index, : len(new)] = new
        visible = np.empty([len(rows), 1, width, columns + width], dtype=bool)
        filled = np.array([row.columns for row in rows])
        visible[:, 0, :, :columns] = (np.arange(columns) < filled[:, None])[:, None]
        visible[:, 0, :, columns:] = np.tril(np.ones([width, width], dtype=bool))
        self.restrict(visible[:, 0], rows, starts, columns)
        positions = self.positions(rows, tokens, starts, width)
        return StepInputs(ids, positions, visible, counts - 1, tuple(row.adapter for row in rows))

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Refuse a prompt that the family cannot read.

        Raises:
            DataError: saying what it lacks.
        """

    def positions(
        self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], starts: np.ndarray, width: int
    ) -> np.ndarray:
        """Return the positions of the new tokens, int64 [b, s]; those of padding are any that the model knows."""
        return starts[:, None] + np.minimum(np.arange(width), np.array([len(new) - 1 for new in tokens])[:, None])

    def restrict(self, visible: np.ndarray, rows: Sequence[Row], starts: np.ndarray, columns: int) -> None:
        """Change what is seen, in place.

        Args:
            visible: bool [b, s, m + s], causal so far.
            rows: see ``__call__``.
            starts: int64 [b], ``length`` of each row.
            columns: m.
        """


class SlidingWindowInputs(CausalInputs):
    """Inputs of models whose tokens see the last ``sliding_window`` tokens only (Mistral), and the whole prefix."""

    def restrict(self, visible: np.ndarray, rows: Sequence[Row], starts: np.ndarray, columns: int) -> None:
        window = self.config.get("sliding_window")
        width = visible.shape[1]
        if not window or starts.max() + width <= window:
            return
        queries = starts[:, None] + np.arange(width)  # [b, s]
        widths = np.array([row.prefix_length for row in rows])[:, None]
        keys = np.concatenate([np.arange(columns) - widths, queries], axis=1)  # [b, m + s]
        near = keys[:, None] > queries[:, :, None] - window
        near[:, :, :columns] |= (np.arange(columns) < widths)[:, None]
        visible &= near


class BlankFillingInputs(CausalInputs):
    """Inputs of models whose prompts attend in both directions, see ``decoders/blank_filling.py``.

    Raises (when called):
        DataError: a prompt without a blank or start mark, or a row longer than the model has positions for.
    """

    whole_prompts = True
    marks_of: ClassVar[Callable[[Mapping[str, Any]], Marks]]

    def __init__(self, config: Mapping[str, Any], pad_token_id: int = 0) -> None:
        super().__init__(config, pad_token_id)
        self.marks = type(self).marks_of(config)

    def check_prompt(self, prompt: Sequence[int]) -> None:
        self.marks.places(np.asarray(prompt), self.config)

    def positions(
        self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], starts: np.ndarray, width: int
    ) -> np.ndarray:
        found = np.zeros([len(rows), 2, width], dtype=np.int64)
        for index, (row, new) in enumerate(zip(rows, tokens)):
            whole = np.zeros(row.length + len(new), dtype=np.int64)
            whole[:] = -1  # the reply: no marks
            whole[: len(row.prompt)] = np.asarray(row.prompt)[: len(whole)]
            found[index, :, : len(new)] = self.marks.places(whole, self.config)[0][:, row.length :]
        return found

    def restrict(self, visible: np.ndarray, rows: Sequence[Row], starts: np.ndarray, columns: int) -> None:
        for index, row in enumerate(rows):
            if row.length == 0:  # its prompt: the tokens before the start mark are seen by all
                _, start = self.marks.places(np.asarray(row.prompt), self.config)
                visible[index, :, columns : columns + start] = True


class ChatGLMInputs(BlankFillingInputs):
    """Inputs of ChatGLM models."""

    marks_of = staticmethod(chatglm_marks)


class GLMInputs(BlankFillingInputs):
    """Inputs of GLM models."""

    marks_of = staticmethod(glm_marks)
