"""One stored weight into a tensor of a model, which may have been built under ``paddle.LazyGuard``."""

from __future__ import annotations

import numpy as np
import paddle


def fill(tensor: paddle.Tensor, array: np.ndarray) -> None:
    """Give a tensor its values.

    Args:
        tensor: of a model; without memory of its own yet, or to be overwritten.
        array: of its shape, in any type that files have.
    """
    if not np.issubdtype(array.dtype, np.integer):
        array = np.asarray(array, dtype=np.float32)  # of all types that numpy and paddle know, it has their values
    values = paddle.to_tensor(array)
    if values.dtype != tensor.dtype:
        values = values.astype(tensor.dtype)
    if tensor._is_initialized():
        tensor.set_value(values)
    else:
        values._share_buffer_to(tensor)  # initialize() would draw random numbers first
