"""The keys and values of the tokens that were run, in one block of memory that is wider than it is filled.

In main memory the block is a numpy array, which tensors and ONNX Runtime share without a copy. On a GPU, and in
bfloat16, which numpy does not know, it is a tensor on paddle's device, written there by slices.

Shape legend: L layers, b rows, n key/value heads, m columns, d size of one head, w columns of a tuned prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddlesft.models.steps import CacheShape

COLUMNS = 64  # a filled block grows by whole multiples of this, and by at least a quarter


class KeyValueCache:
    """A block [2 L, b, n, m, d]: keys and values of each layer in turn.

    Memory is the largest number of rows there was, times the columns; while it grows, the old block is there too.

    Args:
        shape: of one column.
        prefix: keys and values of a tuned prefix [2 L, n, w, d], which fill the first columns of every row; or None.
        on_device: the block is a tensor on the device that is set.
    """

    def __init__(self, shape: CacheShape, prefix: np.ndarray | None = None, on_device: bool = False) -> None:
        self._shape, self._on_device = shape, on_device
        self._prefix: Any = prefix
        if prefix is not None and on_device:
            self._prefix = paddle.to_tensor(prefix).astype(shape.dtype)
        self.width = 0 if prefix is None else prefix.shape[2]
        self._memory: Any = None  # as many rows as there ever were
        self._rows = 0
        self._tensors: list[paddle.Tensor] | None = None

    @property
    def columns(self) -> int:
        """m; at least 1 when there are rows."""
        return 0 if self._memory is None else self._memory.shape[3]

    @property
    def block(self) -> Any:
        """The array or tensor [2 L, b, n, m, d]; the part of each layer is contiguous."""
        return self._memory[:, : self._rows]

    def open(self, rows: int) -> None:
        """Begin with rows that hold a prefix at most: a single column, which nothing sees, without one."""
        self._memory, self._rows = None, 0
        self._grow(rows, max(self.width, 1))
        self._admit(rows)

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` rows of ``columns`` columns, the prefix included. What is there stays."""
        capacity = 0 if self._memory is None else self._memory.shape[1]
        if rows > capacity or columns > self.columns:
            wide = columns > self.columns
            wanted = -(-max(columns, self.columns * 5 // 4) // COLUMNS) * COLUMNS if wide else self.columns
            self._grow(max(rows, capacity), wanted)
        self._admit(rows)

    def _grow(self, rows: int, columns: int) -> None:
        shape, old = self._shape, self._memory
        size = [2 * shape.num_layers, rows, shape.num_heads, columns, shape.head_dim]
        self._memory = paddle.zeros(size, shape.dtype) if self._on_device else np.zeros(size, shape.dtype)
        if self._rows:
            self._memory[:, : self._rows, :, : old.shape[3]] = old[:, : self._rows]
        self._tensors = None

    def _admit(self, rows: int) -> None:
        """Count rows up to ``rows``; new ones begin with the prefix."""
        if rows <= self._rows:
            return
        if self._prefix is not None:
            self._memory[:, self._rows : rows, :, : self.width] = self._prefix[:, None]
        self._rows, self._tensors = rows, None

    def write(self, starts: Sequence[int], counts: Sequence[int], new: Any) -> None:
        """Put new tokens behind those that are there.

        Args:
            starts: tokens that each row has already, the prefix not counted.
            counts: new tokens of each row.
            new: array or tensor [2 L, b, n, s, d]; padded on the right.
        """
        if not self._on_device and not isinstance(new, np.ndarray):
            new = np.from_dlpack(new)
        elif self._on_device:
            new = (new if isinstance(new, paddle.Tensor) else paddle.to_tensor(new)).astype(self._shape.dtype)
        if len(set(starts)) == len(set(counts)) == 1:
            first = self.width + starts[0]
            self._memory[:, : len(starts), :, first : first + counts[0]] = new[:, :, :, : counts[0]]
            return
        for row, (start, count) in enumerate(zip(starts, counts)):
            first = self.width + start
            self._memory[:, row, :, first : first + count] = new[:, row, :, :count]

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the rows at ``indices``, in that order. They move within the block, layer by layer."""
        indices = list(indices)
        first = next((row for row, index in enumerate(indices) if row != index), len(indices))
        if first < len(indices):
            for layer in range(self._memory.shape[0]):
                self._memory[layer, first : len(indices)] = self._memory[layer][indices[first:]]
        self._rows, self._tensors = len(indices), None

    def tensors(self) -> list[paddle.Tensor]:
        """Return 2 L tensors [b, n, m, d] that lie in the same memory."""
        if self._tensors is None:
            whole = self._memory if self._on_device else paddle.utils.dlpack.from_dlpack(self._memory)
            self._tensors = [whole[layer][: self._rows] for layer in range(whole.shape[0])]
        return self._tensors
