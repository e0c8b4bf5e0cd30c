"""An optimizer step that is not taken, whatever kind of optimizer it is.

Gradients that are not numbers must not reach weights or moments, and neither may zeros: weight decay and moments would
change the weights all the same. Optimizers of divided runs have gradients in several places, so the step itself is left
out; what the loop does after it (clearing gradients, the learning rate's schedule) goes on.
"""

from __future__ import annotations

from typing import Any

METHODS = ("step", "_step")  # PaddleNLP's loop calls one or the other


class SkippedStep:
    """Takes an optimizer's steps out, from when it is made until ``end``.

    Args:
        optimizer: any optimizer, plain or wrapped for a divided run.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        # what hides the class's methods now: Paddle's sharding puts functions there
        self.hidden = {name: vars(optimizer)[name] for name in METHODS if name in vars(optimizer)}
        for name in METHODS:
            setattr(optimizer, name, lambda *_: None)

    def end(self) -> None:
        """Give the optimizer its steps back."""
        for name in METHODS:
            delattr(self.optimizer, name)
        vars(self.optimizer).update(self.hidden)
