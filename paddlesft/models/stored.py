"""The weights of a model directory by name, whichever of Paddle's file kinds they are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.pdparams import pickled_arrays
from paddlesft.models.weights import CODE, NewTensor, read_weights

PDPARAMS = "model_state.pdparams"


def stored_weights(directory: str | Path) -> dict[str, NewTensor]:
    """List the weights of a directory; each array is read when it is asked for.

    Args:
        directory: holds safetensors, ``model_state.pdparams`` or its sharded form with an index.

    Returns:
        Tensors by name, read one by one.

    Raises:
        ModelDirectoryError: there are no weights, or they are shards of a tensor-parallel run.
    """
    directory = Path(directory)
    tensors, _ = read_weights(directory)
    if tensors:
        return {name: NewTensor(t.dtype, t.shape, t.load) for name, t in tensors.items()}
    index = directory / f"{PDPARAMS}.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (directory / PDPARAMS).is_file():
        files = [PDPARAMS]
    else:
        parts = sorted(path.name for path in directory.glob("model_state.*.pdparams"))
        if parts:
            raise ModelDirectoryError(
                f"{directory} holds the shards of a parallel run ({', '.join(parts[:3])}). "
                f"Merge them first: paddlesft merge-shards --model_name_or_path {directory} --output_path NEW_DIR."
            )
        raise ModelDirectoryError(f"{directory} holds no weights (*.safetensors or {PDPARAMS}).")
    return {name: tensor for file in files for name, tensor in read_pdparams(directory / file).items()}


def read_pdparams(path: Path) -> dict[str, NewTensor]:
    """List the weights of a ``.pdparams`` file; each array is read when it is asked for.

    Raises:
        ModelDirectoryError: it is missing or damaged.
    """
    return {name: NewTensor(CODE[dtype], shape, load) for name, dtype, shape, load in pickled_arrays(path)}


def load_pdparams(path: Path, return_numpy: bool = False) -> dict[str, Any]:
    """Unpickle a ``.pdparams`` file with paddle's own loader.

    Args:
        path: the file.
        return_numpy: give arrays instead of tensors (bfloat16 as its bits in uint16).

    Raises:
        ModelDirectoryError: it is missing or damaged.
    """
    import paddle

    try:
        return paddle.load(str(path), return_numpy=return_numpy)
    except Exception as error:  # unpickling a damaged file raises anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelDirectoryError(f"{path} is damaged or incomplete ({reason}). Copy it again.") from error

