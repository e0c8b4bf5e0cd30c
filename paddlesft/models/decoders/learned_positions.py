"""What GPT and OPT share: a table of learned positions.

Positions count from 0 at the first real token, with a tuned prefix in front or without, in training as in generation,
and they restart in every segment of a packed row. There is nothing behind the end of the table.
"""

from __future__ import annotations

import paddle

from paddlesft.errors import UserError
from paddlesft.models.decoders.layer_by_layer import LayerByLayerDecoder

# Added to attention scores that are masked. It leaves nothing of them in any float type (the scores of these models
# stay within a few hundred) and is finite in float16 too.
MASKED = -1e4


class LearnedPositionsDecoder(LayerByLayerDecoder):
    """Looks positions up in a table of ``context_key`` rows; the layers are in ``decoder``, behind the embeddings."""

    @property
    def layers_owner(self) -> paddle.nn.Layer:
        return self.body.decoder

    @property
    def layers(self) -> paddle.nn.LayerList:
        return self.body.decoder.layers

    def checked_positions(self, position_ids: paddle.Tensor) -> paddle.Tensor:
        """Return the positions, none of which is behind the table.

        Raises:
            UserError: a row is too long.
        """
        known = self.family.context_length(self.lm.config)
        if position_ids.shape[-1] > known and int(position_ids.max()) >= known:  # short rows need no look
            raise UserError(
                f"A row has {int(position_ids.max()) + 1} tokens, but this model knows {known} positions: they are "
                f"learned one by one, and there are no more. Set max_length to {known} or less."
            )
        return position_ids
