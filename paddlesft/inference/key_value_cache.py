"""The keys and values of the tokens that were run, in one block of memory that is wider than it is filled.

Shape legend: L layers, b rows, n key/value heads, m columns, d size of one head, w columns of a tuned prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from paddlesft.models.steps import CacheShape

COLUMNS = 64  # the block grows by whole multiples of this, and by at least a quarter


class KeyValueCache:
    """A block [2 L, b, n, m, d] in main memory: keys and values of each layer in turn.

    Args:
        shape: of one column.
        prefix: keys and values of a tuned prefix [2 L, n, w, d], which fill the first columns of every row; or None.
    """

    def __init__(self, shape: CacheShape, prefix: np.ndarray | None = None) -> None:
        self._shape = shape
        self._prefix = prefix
        self.width = 0 if prefix is None else prefix.shape[2]
        self.block = np.zeros([2 * shape.num_layers, 0, shape.num_heads, 0, shape.head_dim], dtype=shape.dtype)
        self._tensors: list[paddle.Tensor] | None = None

    @property
    def columns(self) -> int:
        """m."""
        return self.block.shape[3]

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` rows of ``columns`` columns, the prefix included. What is there stays."""
        if rows <= self.block.shape[1] and columns <= self.columns:
            return
        old = self.block
        wanted = max(columns, old.shape[3] * 5 // 4 if columns > old.shape[3] else old.shape[3])
        wanted = -(-wanted // COLUMNS) * COLUMNS
        self.block = np.zeros([old.shape[0], rows, old.shape[2], wanted, old.shape[4]], dtype=old.dtype)
        self.block[:, : old.shape[1], :, : old.shape[3]] = old
        if self._prefix is not None:
            self.block[:, old.shape[1] :, :, : self.width] = self._prefix[:, None]
        self._tensors = None

    def write(self, starts: Sequence[int], counts: Sequence[int], new: np.ndarray) -> None:
        """Put new tokens behind those that are there.

        Args:
            starts: tokens that each row has already, the prefix not counted.
            counts: new tokens of each row.
            new: [2 L, b, n, s, d]; padded on the right.
        """
        for row, (start, count) in enumerate(zip(starts, counts)):
            first = self.width + start
            self.block[:, row, :, first : first + count] = new[:, row, :, :count]

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the rows at ``indices``, in that order."""
        self.block = np.ascontiguousarray(self.block[:, list(indices)])
        self._tensors = None

    def tensors(self) -> list[paddle.Tensor]:
        """Return 2 L tensors [b, n, m, d] that lie in the same memory."""
        if self._tensors is None:
            block = paddle.utils.dlpack.from_dlpack(self.block)
            self._tensors = [block[i] for i in range(len(self.block))]
        return self._tensors
