"""Small ChatGLM and GLM models, and rows with a blank and a start mark, for the tests of their decoders."""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlesft.data.collate import Collator
from paddlesft.data.dataset import SFTDataset
from tests.models.decoders import proofs
from tests.training.small_runs import VOCABULARY

MASK, START, SMALL_MASK, BLANK = 0, 2, 3, 4  # ordinary ids begin at 5
IDS: dict[str, dict[str, int]] = {
    "chatglm": {"bos_token_id": START, "gmask_token_id": BLANK, "mask_token_id": MASK},
    "glm": {
        "sop_token_id": START, "gmask_token_id": BLANK, "smask_token_id": SMALL_MASK, "mask_token_id": MASK,
    },
}  # fmt: skip
FAMILIES = tuple(IDS)


def small(name: str, **overrides: Any) -> Any:
    """Return a random model of a family."""
    return proofs.small(name, **IDS[name], **overrides)


def row_of(prompt: int, reply: int, seed: int = 0, blank: int = BLANK) -> list[int]:
    """A row with so many random tokens before its marks and behind them."""
    draw = np.random.default_rng([prompt, reply, seed])
    ids = draw.integers(5, VOCABULARY - 1, prompt + reply).tolist()
    return [*ids[:prompt], blank, START, *ids[prompt:]]


ROWS = [row_of(*sizes) for sizes in ((7, 4), (1, 8), (12, 6), (3, 5))]


def batch(packs: list[list[int]] | None = None) -> dict[str, np.ndarray]:
    """``ROWS`` as training collates them, with the replies as labels."""
    trained = [[i > row.index(START) for i in range(len(row))] for row in ROWS]
    dataset = SFTDataset(ROWS, trained, packs=packs)
    return Collator(0)([dataset[i] for i in range(len(dataset))])
