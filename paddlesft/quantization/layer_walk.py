"""Calibration batches on their way through a model, one decoder layer at a time.

A layer is looked at and quantized while everything before it is quantized already, so that it learns what it will be
given; the memory needed is that of one layer's statistics and of the batches' hidden states, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlesft.models.decoders import decoder_of
from paddlesft.models.quantized.decoder_linears import decoder_layers

Look = Callable[[list[paddle.Tensor]], None]  # given the rows of a batch, each [n, i]


@dataclass
class Call:
    """The arguments with which a decoder layer is called for one batch; the first are the hidden states."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def hidden(self) -> paddle.Tensor:
        """The hidden states in front of the layer."""
        return self.arguments[0] if self.arguments else next(iter(self.named.values()))

    @hidden.setter
    def hidden(self, hidden: paddle.Tensor) -> None:
        if self.arguments:
            self.arguments = (hidden, *self.arguments[1:])
        else:
            self.named = {**self.named, next(iter(self.named)): hidden}

    def __call__(self, layer: nn.Layer) -> paddle.Tensor:
        """Run a layer and return its hidden states."""
        output = layer(*self.arguments, **self.named)
        return output[0] if isinstance(output, tuple | list) else output


class _Caught(Exception):
    """Ends a forward pass whose first decoder layer has been reached."""


class LayerWalk:
    """Takes batches through the decoder layers of a model.

    Args:
        model: a causal language model in evaluation mode; its layers may be changed on the way.
        batches: collated batches: ``input_ids`` and ``attention_mask``, or packed rows.
    """

    def __init__(self, model: nn.Layer, batches: Sequence[Mapping[str, Any]]) -> None:
        self.layers = decoder_layers(model)
        self.calls = [self._first_call(model, batch) for batch in batches]
        self._rows_first = decoder_of(model).rows_first
        self._real = [real_tokens(batch) for batch in batches]

    def _first_call(self, model: nn.Layer, batch: Mapping[str, Any]) -> Call:
        caught: list[Call] = []

        def forward(*arguments: Any, **named: Any) -> None:
            caught.append(Call(arguments, named))
            raise _Caught

        first = next(iter(self.layers.values()))
        first.forward = forward
        try:
            with paddle.no_grad():
                tensors = {key: paddle.to_tensor(value) for key, value in batch.items()}
                decoder_of(model).run(
                    tensors["input_ids"],
                    tensors.get("attention_mask"),
                    tensors.get("segment_ids"),
                    tensors.get("position_ids"),
                )
        except _Caught:
            pass
        finally:
            del first.forward
        return caught[0]

    def __iter__(self) -> Iterator[tuple[str, nn.Layer]]:
        """Yield each decoder layer and its name; when the next is asked for, the batches go through this one."""
        for name, layer in self.layers.items():
            yield name, layer
            self.go_through(layer)

    @paddle.no_grad()
    def go_through(self, layer: nn.Layer) -> None:
        """Put the batches behind a layer."""
        for call in self.calls:
            call.hidden = call(layer)

    @paddle.no_grad()
    def show(self, layer: nn.Layer, looks: Mapping[nn.Layer, Look], steps: int) -> None:
        """Run a layer on the first batches and hand the inputs of some of its parts to those who look at them.

        Args:
            layer: the decoder layer that the batches stand in front of.
            looks: parts of it, each with what is called with its input of every batch: rows, padding left out.
            steps: number of batches.
        """
        for call, real in zip(self.calls[:steps], self._real):

            def rows(x: paddle.Tensor, real: Sequence[paddle.Tensor] = real) -> list[paddle.Tensor]:
                return [paddle.gather(row, positions) for row, positions in zip(self._rows_first(x), real)]

            with _hooks(looks, rows):
                call(layer)


def real_tokens(batch: Mapping[str, Any]) -> list[paddle.Tensor]:
    """Return the positions of each row of a batch that are not padding."""
    real = np.asarray(batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]) != 0
    return [paddle.to_tensor(np.flatnonzero(row)) for row in real]


@contextmanager
def _hooks(looks: Mapping[nn.Layer, Look], rows: Callable[[paddle.Tensor], list[paddle.Tensor]]) -> Iterator[None]:
    def hook(look: Look) -> Callable[..., None]:
        return lambda _, inputs: look(rows(inputs[0]))

    handles = [part.register_forward_pre_hook(hook(look)) for part, look in looks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
