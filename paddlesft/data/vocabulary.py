"""A tokenizer's ids are rows of the model's embedding: one that has further ids is refused before it is used."""

from __future__ import annotations

from pathlib import Path

from paddlesft.data.encoding import TextEncoder
from paddlesft.errors import ModelDirectoryError


def check_vocabulary(encoder: TextEncoder, num_rows: int, tokenizer: str | Path, model: str | Path) -> None:
    """Refuse a tokenizer that has ids which the model's embedding has no row for.

    Args:
        encoder: holds the tokenizer.
        num_rows: how many tokens the embedding knows (``vocab_size`` of the config).
        tokenizer: the tokenizer's directory, named in the error.
        model: the model's directory, named in the error.

    Raises:
        ModelDirectoryError: the tokenizer's highest id is ``num_rows`` or more.
    """
    index, text = encoder.last_token()
    if index >= num_rows:
        raise ModelDirectoryError(
            f"The tokenizer in {tokenizer} has ids up to {index} ({text!r}), but the model in {model} knows {num_rows} "
            f"tokens: ids 0 to {num_rows - 1}. Use the tokenizer that this model was made with (tokenizer_name_or_path "
            "names another directory for it), or take the tokens that were added to it out of its files."
        )
