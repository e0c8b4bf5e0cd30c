"""The keys and values of the tokens that were run, in one block of memory that is wider than it is filled.

In main memory the block is a numpy array, which tensors and ONNX Runtime share without a copy. On a GPU, and in
bfloat16, which numpy does not know, it is a tensor on paddle's device, written there by slices.

Shape legend: L layers, b rows, n key/value heads, m columns, d size of one head, w first columns of a row.
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

    Memory is ``capacity`` times the columns; while it grows or shrinks, the old block is there too.

    Args:
        shape: of one column.
        on_device: the block is a tensor on the device that is set.

    Attributes:
        most: rows times columns that the block has at most, unless more of them are filled; None: no bound.
    """

    def __init__(self, shape: CacheShape, on_device: bool = False) -> None:
        self._shape, self._on_device = shape, on_device
        self.most: int | None = None
        self._memory: Any = None
        self._rows = 0
        self._tensors: list[paddle.Tensor] | None = None

    @property
    def rows(self) -> int:
        """b."""
        return self._rows

    @property
    def capacity(self) -> int:
        """Rows that memory is there for."""
        return 0 if self._memory is None else self._memory.shape[1]

    @property
    def columns(self) -> int:
        """m; at least 1 when there are rows."""
        return 0 if self._memory is None else self._memory.shape[3]

    @property
    def block(self) -> Any:
        """The array or tensor [2 L, b, n, m, d]; the part of each layer is contiguous."""
        return self._memory[:, : self._rows]

    def open(self, rows: int) -> None:
        """Begin with rows of a single column, which holds nothing: a graph cannot do without one."""
        self._memory, self._rows = None, 0
        self._resize(rows, 1)
        self._admit(rows)

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` rows, of which the longest fills ``columns``. What is there stays."""
        capacity, wide, many = self.capacity, columns > self.columns, rows > self.capacity
        if wide or many:
            roomy = _in_steps(max(columns, self.columns * 5 // 4)) if wide else self.columns
            spare = max(rows, 2 * capacity) if many and self._rows else max(rows, capacity)
            for size in ((spare, roomy), (rows, roomy), (rows, columns)):
                if self.most is None or size[0] * size[1] <= self.most:
                    break
            self._resize(*size)
        self._admit(rows)

    def _resize(self, rows: int, columns: int) -> None:
        shape, old = self._shape, self._memory
        size = [2 * shape.num_layers, rows, shape.num_heads, columns, shape.head_dim]
        self._memory = paddle.zeros(size, shape.dtype) if self._on_device else np.zeros(size, shape.dtype)
        if self._rows:
            kept = min(columns, old.shape[3])
            self._memory[:, : self._rows, :, :kept] = old[:, : self._rows, :, :kept]
        self._tensors = None

    def _admit(self, rows: int) -> None:
        """Count rows up to ``rows``; new ones are empty."""
        if rows <= self._rows:
            return
        self._memory[:, self._rows : rows] = 0  # of rows that left, and 0 times NaN is NaN
        self._rows, self._tensors = rows, None

    def fill(self, row: int, first: int, content: Any) -> None:
        """Put keys and values that are known, of a tuned prefix for instance, into columns of a row.

        Args:
            row: which.
            first: the first column.
            content: [2 L, n, w, d]; there is room for them.
        """
        if self._on_device and not isinstance(content, paddle.Tensor):
            content = paddle.to_tensor(content).astype(self._shape.dtype)
        self._memory[:, row, :, first : first + content.shape[2]] = content

    def read(self, row: int, first: int, end: int) -> Any:
        """Return a copy of columns of a row, [2 L, n, end - first, d]."""
        content = self._memory[:, row, :, first:end]
        return content.clone() if self._on_device else content.copy()

    def join(self, other: KeyValueCache, columns: int) -> None:
        """Put the rows of another cache behind those of this one; the other one is not to be used any more.

        Args:
            other: of the same model.
            columns: that the longest row of both fills.
        """
        if not self._rows:
            self._memory, self._rows, self._tensors = other._memory, other._rows, other._tensors
            return
        first, wanted = self._rows, self._rows + other._rows
        self.reserve(wanted, columns)
        kept = min(other.columns, self.columns)
        self._memory[:, first:wanted, :, :kept] = other.block[:, :, :, :kept]

    def shrink(self, columns: int) -> None:
        """Give memory back when at most half of the columns or a quarter of all is needed, or it is above ``most``.

        Args:
            columns: that are filled, or will be soon.
        """
        if not self._rows:
            self._memory, self._tensors = None, None
            return
        wanted, there = _in_steps(columns), self.capacity * self.columns
        above = self.most is not None and there > self.most
        if above or 2 * wanted <= self.columns or 4 * self._rows * wanted <= there:
            fits = self.most is None or self._rows * wanted <= self.most
            self._resize(self._rows, wanted if fits else columns)

    def write(self, starts: Sequence[int], counts: Sequence[int], new: Any) -> None:
        """Put new tokens behind those that are there.

        Args:
            starts: columns that each row has filled already.
            counts: new tokens of each row.
            new: array or tensor [2 L, b, n, s, d]; padded on the right.
        """
        if not self._on_device and not isinstance(new, np.ndarray):
            new = np.from_dlpack(new)
        elif self._on_device:
            new = (new if isinstance(new, paddle.Tensor) else paddle.to_tensor(new)).astype(self._shape.dtype)
        if len(set(starts)) == len(set(counts)) == 1:
            first = starts[0]
            self._memory[:, : len(starts), :, first : first + counts[0]] = new[:, :, :, : counts[0]]
            return
        for row, (first, count) in enumerate(zip(starts, counts)):
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


def _in_steps(columns: int) -> int:
    """Round up to whole steps."""
    return -(-columns // COLUMNS) * COLUMNS
