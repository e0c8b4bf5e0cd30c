"""Weights on disk, one tensor at a time: safetensors files are read and written without holding a model in memory.

Layout of the format: 8 bytes little-endian header size, a JSON header, then the raw tensors
(https://huggingface.co/docs/safetensors). It is read here directly, because numpy alone has no bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from paddlesft.errors import ModelDirectoryError

if TYPE_CHECKING:
    import paddle

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PADDLE_LAYOUT, TORCH_LAYOUT = "np", "pt"  # values of the header's "format": how Linear weights are oriented
MAX_SHARD_BYTES = 5 * 1024**3
MAX_HEADER_BYTES = 100 * 1024**2
NUMPY = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
CODE = {dtype: code for code, dtype in NUMPY.items()}
DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}  # config.json's names -> header's


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; ``begin`` and ``end`` are byte positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    def load(self) -> np.ndarray:
        """Read the tensor: an array of its own dtype (bfloat16 from ml_dtypes) and shape."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            return np.frombuffer(file.read(self.end - self.begin), dtype=NUMPY[self.dtype]).reshape(self.shape)

    def mapped(self) -> np.ndarray:
        """Give the tensor as it lies in its file: only what is then looked at is read."""
        if self.begin == self.end:
            return self.load()
        return np.memmap(self.path, dtype=NUMPY[self.dtype], mode="r", offset=self.begin, shape=self.shape)


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: ``make`` gives the array when its turn has come; it is cast to ``dtype``."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @classmethod
    def of(cls, tensor: paddle.Tensor, dtype: str | None = None) -> NewTensor:
        """Return a tensor of Paddle's, in its own type or in another one (``float32``, ``bfloat16``, ...)."""
        own = str(tensor.dtype).removeprefix("paddle.")
        wide = "float32" if own == "bfloat16" else own  # numpy alone has no bfloat16
        return cls(CODE[np.dtype(dtype or own)], tuple(tensor.shape), lambda: tensor.astype(wide).numpy())

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * NUMPY[self.dtype].itemsize


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read what a safetensors file holds.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        ModelDirectoryError: the file is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelDirectoryError(f"{path} is not a complete safetensors file ({size} bytes). Copy it again.")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", None) or {}
            tensors = {
                name: StoredTensor(
                    name, entry["dtype"], tuple(entry["shape"]), path, *(8 + length + o for o in entry["data_offsets"])
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelDirectoryError(f"{path} is not a safetensors file: its header cannot be read.") from error
    end = max((t.end for t in tensors.values()), default=8 + length)
    if end > size:
        raise ModelDirectoryError(
            f"{path} is truncated: it holds {size} bytes, its header promises {end}. Download or copy it again."
        )
    unknown = sorted({t.dtype for t in tensors.values()} - set(NUMPY))
    if unknown:
        raise ModelDirectoryError(f"{path} holds tensors of type {', '.join(unknown)}; allowed: {', '.join(NUMPY)}.")
    return tensors, metadata


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory, by the index when there is one (empty: there are none).

    Raises:
        ModelDirectoryError: the index names files that are missing.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelDirectoryError(f"{index} is no index of safetensors files.") from error
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ModelDirectoryError(
                f"{directory} is incomplete: {len(missing)} of {len(names)} weight files named by {INDEX} are missing "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). Download or copy the model again."
            )
        return [directory / name for name in names]
    return [directory / SINGLE] if (directory / SINGLE).is_file() else []


def read_weights(directory: Path) -> tuple[dict[str, StoredTensor], str | None]:
    """Read what the safetensors files of a directory hold.

    Returns:
        The tensors by name, and the layout from the metadata (``"np"`` Paddle, ``"pt"`` torch, None when unsaid).
    """
    tensors: dict[str, StoredTensor] = {}
    layout = None
    for path in weight_files(directory):
        found, metadata = read_header(path)
        tensors |= found
        layout = metadata.get("format", layout)
    return tensors, layout


def write_weights(
    directory: Path, tensors: Mapping[str, NewTensor], layout: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors as safetensors, sharded with an index when they are larger than one file may be.

    Args:
        directory: an existing scratch directory.
        tensors: what to write; only one tensor is in memory at a time.
        layout: ``PADDLE_LAYOUT`` or ``TORCH_LAYOUT``.
        max_shard_bytes: the largest size of one file's tensors.
    """
    shards: list[dict[str, NewTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        write_file(directory / SINGLE, shards[0], layout)
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        write_file(directory / name, shard, layout)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Mapping[str, NewTensor], layout: str) -> None:
    """Write one safetensors file, one tensor in memory at a time.

    Args:
        path: the file to create.
        tensors: what to write.
        layout: ``PADDLE_LAYOUT`` or ``TORCH_LAYOUT``.
    """
    header: dict[str, object] = {"__metadata__": {"format": layout}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]
        }  # fmt: skip
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            array = np.asarray(tensor.make())
            if array.shape != tensor.shape:
                raise ValueError(f"{name}: announced with shape {tensor.shape}, made with {array.shape}")
            array = np.ascontiguousarray(array, dtype=NUMPY[tensor.dtype])
            file.write(array.reshape(-1).view(np.uint8).data)  # no copy: tensors may be large


def hash_weights(directory: Path) -> str:
    """Hash weights by content: names, types, shapes and bytes of all tensors, whatever files they are spread over.

    Args:
        directory: holds safetensors or, failing that, ``.pdparams`` files (hashed as files).

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    tensors, _ = read_weights(directory)
    if tensors:
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
            for block in _blocks(tensor.path, tensor.begin, tensor.end):
                digest.update(block)
        return digest.hexdigest()
    files = sorted(p for kind in ("*.safetensors", "*.pdparams", "pytorch_model*.bin") for p in directory.glob(kind))
    if not files:
        raise ModelDirectoryError(f"{directory} holds no weights (*.safetensors or *.pdparams).")
    for path in files:
        digest.update(f"{path.name}\0".encode())
        for block in _blocks(path, 0, path.stat().st_size):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, begin: int, end: int, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        for start in range(begin, end, size):
            yield file.read(min(size, end - start))
