"""Several LoRA adapters over one base, where each row of a batch has its own: for inference.

The matrices A of all adapters of a layer stand side by side, the matrices B one below the other, so that one product
serves the rows of every adapter; in between, each row keeps the numbers of its own adapter only:

    y = x W + b + ((x [A1 A2 ...]) * factors) [B1; B2; ...]

``factors`` hold an adapter's scaling in its columns of its rows and 0 elsewhere. A loop over adapters has to gather and
scatter rows, and a batched product copies a pair of matrices for each row: both are slower on a CPU, and more so with
more adapters. What the adapters cost is in docs/serve.md; it grows with the ranks of the adapters that a batch has.

Shape legend: b rows, s tokens, i inputs and o outputs of a Linear, r rank, R sum of the ranks of a layer's adapters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddlenlp.peft import LoRAConfig

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.quantized.directory import put_layer
from paddlesft.models.steps.cpu_operators import linear
from paddlesft.parallel.division import to_tensor
from paddlesft.tuning.lora import CONFIG_FILE, adapter_weights, check_fit
from paddlesft.tuning.lora_targets import linear_layers

LOW_RANK = ("lora_A", "lora_AB", "lora_B")
MERGE = "Make a model of its own of it (paddlesft merge-lora), and serve that"
# What a row cannot have for itself, by the entry of lora_config.json that says so.
OTHER_UPDATES = {
    "pissa": "PiSSA, which changes the base weights too",
    "loraga": "LoRA-GA, which changes the base weights too",
    "use_mora": "MoRA's square updates",
    "do_qat": "quantization-aware training",
    "enable_lora_list": "merged projections (enable_lora_list)",
}


@dataclass(frozen=True)
class LowRank:
    """The update of one layer: ``scaling * A @ B``, with float32 A [i, r] and B [r, o]."""

    a: np.ndarray
    b: np.ndarray
    scaling: float


def read_row_lora(model: nn.Layer, path: Path) -> dict[str, LowRank]:
    """Read a LoRA adapter that is to compute some rows of a batch.

    Args:
        model: the base, bare.
        path: the adapter's directory.

    Returns:
        Updates by layer name.

    Raises:
        ModelDirectoryError: files are missing or damaged, names or shapes do not fit the base, weights are not finite,
            or the adapter changes more than products of Linear layers.
    """
    config = read_row_config(path)
    weights = adapter_weights(path)
    whole = sorted(name for name in weights if name.rpartition(".")[2] not in LOW_RANK)
    if whole:
        raise ModelDirectoryError(
            f"{path} cannot share a base with other adapters: it replaces {len(whole)} weights as a whole (first: "
            f"{whole[0]}), for all rows of a batch. {MERGE}."
        )
    patterns = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules or []
    linears = linear_layers(model)
    layers = {name: layer for name, layer in model.named_sublayers() if name in linears}
    wanted: dict[str, list[int]] = {}
    targets = [name for name in layers if any(re.fullmatch(pattern, name) for pattern in patterns)]
    for name in targets:
        inputs, outputs = sizes_of(layers[name])
        wanted |= {f"{name}.lora_A": [inputs, config.r], f"{name}.lora_B": [config.r, outputs]}
        if config.lora_use_mixer:
            wanted[f"{name}.lora_AB"] = [config.r, config.r]
    check_fit(path, wanted, weights)
    found = {}
    for name in targets:
        a, between, b = (
            to_tensor(weights[f"{name}.{part}"], "float32").cpu().numpy() if f"{name}.{part}" in weights else None
            for part in LOW_RANK
        )
        a = a if between is None else a @ between
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ModelDirectoryError(
                f"{path}: the adapter of {name} holds numbers that are not finite, which would reach the rows of other "
                "adapters. Take an earlier checkpoint of its training."
            )
        found[name] = LowRank(a, b, float(config.scaling))
    return found


def read_row_config(path: Path) -> LoRAConfig:
    """Read lora_config.json of an adapter that is to compute some rows of a batch.

    Raises:
        ModelDirectoryError: the file is missing or damaged, or the adapter is of a kind that rows cannot have.
    """
    if not (path / CONFIG_FILE).is_file():
        raise ModelDirectoryError(f"{path} has no {CONFIG_FILE}. Copy the whole directory.")
    try:
        config = LoRAConfig.from_pretrained(str(path))
    except (ValueError, TypeError, json.JSONDecodeError) as error:
        raise ModelDirectoryError(f"{path / CONFIG_FILE} cannot be read: {error}.") from error
    other = [what for key, what in OTHER_UPDATES.items() if getattr(config, key, None)]
    if config.trainable_bias not in (None, "none"):
        other.append(f"biases (trainable_bias: {config.trainable_bias})")
    if config.trainable_modules:
        other.append(f"whole layers (trainable_modules: {', '.join(config.trainable_modules)})")
    if other:
        raise ModelDirectoryError(
            f"{path} cannot share a base with other adapters: it has {' and '.join(other)}, which a row of a batch "
            f"cannot have for itself. {MERGE}."
        )
    return config


def sizes_of(layer: nn.Layer) -> tuple[int, int]:
    """Return the number of inputs and outputs of a Linear, quantized or not."""
    if isinstance(layer, nn.Linear):
        return tuple(layer.weight.shape)
    return layer.in_features, layer.out_features


class RowAdapters:
    """Says which adapter computes each row of the call at hand; the layers of a model share one."""

    def __init__(self) -> None:
        self._rows: tuple[str | None, ...] = ()
        self._made: dict[object, paddle.Tensor | None] = {}

    def choose(self, rows: Sequence[str | None]) -> None:
        """Set the adapter of each row, None for the base, for the calls that follow."""
        if tuple(rows) != self._rows:
            self._rows, self._made = tuple(rows), {}

    def factors(
        self, columns: tuple[tuple[str, int, float], ...], dtype: paddle.dtype
    ) -> tuple[tuple[int, int], paddle.Tensor] | None:
        """Return what the inner numbers of a layer are multiplied by.

        Args:
            columns: name, rank and scaling of the layer's adapters in their order.
            dtype: of the result.

        Returns:
            First and last + 1 of the R columns between which those of the rows' adapters are, and factors [b, 1, n]
            for these n columns; None where no row has one of the adapters.
        """
        key = (columns, dtype)
        if key not in self._made:
            owners = [(name, scaling) for name, rank, scaling in columns for _ in range(rank)]
            own = np.array([[scaling * (row == name) for name, scaling in owners] for row in self._rows], np.float32)
            used = np.flatnonzero([name in self._rows for name, _ in owners])
            made = None
            if len(used):
                place = (int(used[0]), int(used[-1]) + 1)
                made = place, paddle.to_tensor(own[:, None, slice(*place)]).astype(dtype)
            self._made[key] = made
        return self._made[key]


class RowLoRALinear(nn.Layer):
    """A Linear, quantized or not, with the updates of several adapters: [b, s, i] -> [b, s, o].

    Args:
        base: the layer.
        updates: by adapter.
        rows: which of them computes each row.
        dtype: of the updates.
    """

    def __init__(self, base: nn.Layer, updates: Mapping[str, LowRank], rows: RowAdapters, dtype: str) -> None:
        super().__init__()
        self.base = base
        self.columns = tuple((name, update.a.shape[1], update.scaling) for name, update in updates.items())
        a = np.concatenate([update.a.T for update in updates.values()])  # so that an adapter's part is contiguous
        b = np.concatenate([update.b for update in updates.values()])
        self.register_buffer("lora_A", paddle.to_tensor(a).astype(dtype), persistable=False)
        self.register_buffer("lora_B", paddle.to_tensor(b).astype(dtype), persistable=False)
        self._rows = rows
        self._parts: dict[tuple[int, int], tuple[paddle.Tensor, paddle.Tensor]] = {}

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute the layer, each row with its own adapter."""
        y = linear(self.base, x)
        found = self._rows.factors(self.columns, self.lora_A.dtype)
        if found is None:
            return y
        place, factors = found
        if place not in self._parts:
            self._parts[place] = self.lora_A[slice(*place)], self.lora_B[slice(*place)]  # of the same memory
        a, b = self._parts[place]
        inner = paddle.matmul(x.astype(a.dtype), a, transpose_y=True) * factors
        return y + paddle.matmul(inner, b).astype(y.dtype)


def put_row_lora(model: nn.Layer, adapters: Mapping[str, Mapping[str, LowRank]]) -> RowAdapters:
    """Put the updates of several adapters beside the Linear layers of a model, which is changed in place.

    Args:
        model: the base, bare.
        adapters: for each name of an adapter its updates by layer name, see ``read_row_lora``.

    Returns:
        What has to be told which adapter computes each row.
    """
    rows, dtype = RowAdapters(), str(model.config.dtype or paddle.get_default_dtype())
    for name, layer in list(model.named_sublayers()):
        updates = {adapter: found[name] for adapter, found in adapters.items() if name in found}
        if updates:
            put_layer(model, name, RowLoRALinear(layer, updates, rows, dtype))
    return rows
