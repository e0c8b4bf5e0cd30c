"""``.pdparams`` files read and written tensor by tensor.

``paddle.load`` reads a file whole and runs whatever code its pickle names. Here the pickle is walked, large byte
strings are skipped over and read when asked for, and only the few names that a file of arrays needs are allowed.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from paddlesft.errors import ModelDirectoryError

SMALL = 1024  # bytes: shorter strings are read at once
PARTS = "UnpackBigParamInfor@@"  # paddle's key for arrays that pickle protocol 2 had to cut into pieces


@dataclass(frozen=True)
class SkippedBytes:
    """A byte string left in the file."""

    position: int
    size: int


class PickledArray:
    """One array of a pickle, its numbers still in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.stored = np.dtype(np.float32)
        self.column_major = False
        self.data: SkippedBytes | bytes = b""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.stored, self.column_major, self.data = state

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers; paddle has no unsigned 16-bit type and writes bfloat16 as its bits."""
        return np.dtype(ml_dtypes.bfloat16) if self.stored == np.uint16 else self.stored

    def load(self) -> np.ndarray:
        """Read the array."""
        data = self.data
        if isinstance(data, SkippedBytes):
            with self.path.open("rb") as file:
                file.seek(data.position)
                data = file.read(data.size)
        flat = np.frombuffer(data, dtype=self.stored).view(self.dtype)
        return flat.reshape(self.shape, order="F" if self.column_major else "C")


class _Walker(pickle._Unpickler):  # the version in Python: the one in C reads byte strings of any length
    """Builds what a pickle says, with ``PickledArray`` for arrays."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.source, self.path = file, path

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "_reconstruct": lambda *_: PickledArray(self.path),
            "ndarray": np.ndarray, "dtype": np.dtype, "tuple": tuple, "bytes": bytes,
            "OrderedDict": collections.OrderedDict,
            "encode": lambda text, encoding: text.encode(encoding),
            "eval": lambda _, names: names["data"],  # how paddle writes a DenseTensor
            "scalar": lambda dtype, data: np.frombuffer(self.bytes_of(data), dtype)[0],
        }  # fmt: skip
        numpy_names = {("numpy", "ndarray"), ("numpy", "dtype")}
        numpy_names |= {(f"numpy.{core}.multiarray", kind) for core in ("core", "_core") for kind in
                        ("_reconstruct", "scalar")}  # fmt: skip
        others = {("builtins", "tuple"), ("builtins", "eval"), ("collections", "OrderedDict"), ("_codecs", "encode"),
                  ("__builtin__", "bytes"), ("__builtin__", "tuple"), ("__builtin__", "eval")}  # fmt: skip
        if (module, name) not in numpy_names | others:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no array")
        return known[name]

    @staticmethod
    def bytes_of(data: Any) -> bytes:
        return data.encode("latin1") if isinstance(data, str) else data

    def take(self, size: int) -> SkippedBytes | bytes:
        """Read a byte string, or skip it when it is long and stands in the file itself (not in a buffered frame)."""
        if size < SMALL or self._unframer.current_frame is not None:
            return self.read(size)
        skipped = SkippedBytes(self.source.tell(), size)
        end = self.source.seek(0, 2)
        if skipped.position + size > end:
            raise EOFError(f"it ends after {end} bytes and promises {skipped.position + size}")
        self.source.seek(skipped.position + size)
        return skipped

    def load_binbytes(self) -> None:
        self.append(self.take(int.from_bytes(self.read(4), "little")))

    def load_binbytes8(self) -> None:
        self.append(self.take(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BINBYTES[0]] = load_binbytes
    dispatch[pickle.BINBYTES8[0]] = load_binbytes8


def walk_pickle(path: Path) -> Any:
    """Return what a file written by ``paddle.save`` holds, every array as a ``PickledArray`` that is not read yet.

    Args:
        path: a ``.pdparams`` or ``.pdopt`` file.

    Raises:
        ModelDirectoryError: it is missing, damaged, or holds objects that are no arrays.
    """
    try:
        with path.open("rb") as file:
            return _Walker(file, path).load()
    except Exception as error:  # unpickling a damaged file raises anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelDirectoryError(f"{path} is damaged or incomplete ({reason}). Copy it again.") from error


def pickled_arrays(path: Path) -> Iterator[tuple[str, np.dtype, tuple[int, ...], Callable[[], np.ndarray]]]:
    """List the arrays of a ``.pdparams`` file.

    Args:
        path: the file, a dictionary of arrays.

    Yields:
        Name, type, shape and a function that reads the array.

    Raises:
        ModelDirectoryError: see ``walk_pickle``; or it holds no dictionary.
    """
    content = walk_pickle(path)
    if not isinstance(content, dict):
        raise ModelDirectoryError(f"{path} holds a {type(content).__name__} instead of weights by name.")
    cut = content.pop(PARTS, {})
    pieces = {piece for entry in cut.values() for piece in entry["slices"]}
    for name, value in content.items():
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value  # (tensor's own name, numbers)
        if isinstance(array, PickledArray) and name not in pieces:
            yield name, array.dtype, tuple(array.shape), array.load
    for name, entry in cut.items():
        parts, shape = [content[piece] for piece in entry["slices"]], tuple(entry["OriginShape"])

        def load(parts: list = parts, shape: tuple = shape) -> np.ndarray:
            return np.concatenate([part.load() for part in parts]).reshape(shape)

        yield name, parts[0].dtype, shape, load


class _Writer(pickle.Pickler):
    """Pickles arrays that are made when their turn has come."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Later):
            return NotImplemented
        array = np.ascontiguousarray(value.make())
        # paddle reads unsigned 16-bit numbers as the bits of bfloat16
        return (array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array).__reduce__()


@dataclass(frozen=True)
class _Later:
    make: Callable[[], np.ndarray]


def write_pdparams(path: Path, arrays: Mapping[str, Callable[[], np.ndarray]]) -> None:
    """Write a ``.pdparams`` file that ``paddle.load`` reads, one array in memory at a time.

    Args:
        path: the file to create.
        arrays: functions that give the arrays, by name.
    """
    with path.open("wb") as file:
        writer = _Writer(file, protocol=4)
        writer.fast = True  # no memory of what was written, which would keep every array
        writer.dump({name: _Later(make) for name, make in arrays.items()})
