"""How the decoder of each family is called: one file per convention; the rows of the family table name the classes."""

from paddlesft.models.decoders.causal import CausalDecoder, causal_lm, decoder_of

__all__ = ["CausalDecoder", "causal_lm", "decoder_of"]
