"""Which layers of a model are quantized: the Linear layers of its decoder layers; neither head nor embeddings."""

from __future__ import annotations

from paddle import nn

from paddlesft.models.decoders import causal_lm
from paddlesft.models.families import family_of


def decoder_layers(model: nn.Layer) -> dict[str, nn.Layer]:
    """Return the decoder layers of a model by their names, in the order in which they run."""
    lm = causal_lm(model)
    count = family_of(lm.config).num_layers(lm.config)
    for name, layer in lm.named_sublayers():
        if isinstance(layer, nn.LayerList) and len(layer) == count:
            return {f"{name}.{i}": one for i, one in enumerate(layer)}
    raise ValueError(f"{type(lm).__name__} has no list of {count} decoder layers")


def decoder_linears(model: nn.Layer) -> dict[str, nn.Linear]:
    """Return the Linear layers of all decoder layers by name, in the order in which they run."""
    return {
        f"{name}.{part}": linear
        for name, layer in decoder_layers(model).items()
        for part, linear in layer.named_sublayers()
        if type(linear) is nn.Linear
    }
