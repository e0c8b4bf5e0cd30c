"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from paddle import nn


def train_all_weights(model: nn.Layer) -> nn.Layer:
    """Mark every parameter of a model as trainable and return the model."""
    for parameter in model.parameters():
        parameter.stop_gradient = False
    return model
