"""A model's chat template as transformers' ``apply_chat_template`` needs it, to make the same ids."""

from __future__ import annotations

import json
from pathlib import Path

from paddlesft.data.encoding import TextEncoder
from paddlesft.data.templates import load_template
from paddlesft.models.directory import TOKENIZER_FILES, read_config
from paddlesft.models.families import family_of
from paddlesft.models.provenance import read_provenance
from paddlesft.models.tokenizers import load_tokenizer

WORD = "word"


def template_for_transformers(directory: str | Path) -> tuple[str | None, list[str]]:
    """Return the template that a model is prompted with, where its tokenizer files do not say it to transformers.

    Built-in templates are named in ``paddlesft.json`` only. And ``apply_chat_template`` adds no special tokens, so that
    those which the tokenizer puts before a text have to stand in the template.

    Args:
        directory: of a model; it is only read.

    Returns:
        Jinja text, None where there is nothing to write; and notes for the user.

    Raises:
        DataError: the recorded template is not there any more.
    """
    directory, notes = Path(directory), []
    facts = read_provenance(directory)
    if facts.get("system_prompt"):
        prompt = facts["system_prompt"]
        notes.append(f"Its system prompt is no part of the template; send it as the first message: {prompt}")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None, notes
    spec, default = facts.get("chat_template"), family_of(read_config(directory)).default_template
    tokenizer = load_tokenizer(directory)
    template = load_template(tokenizer, spec, directory, default)
    if template.paddle is not None:
        notes.append(
            "Its template is PaddleNLP's chat_template.json, which transformers does not read: the tokenizer there has "
            "no template."
        )
        return None, notes
    said = template.name == "tokenizer" and not template.adds_special_tokens
    if said or (spec is None and template.name == "plain"):
        return None, notes  # its files say it already; or it is a model that knows no turns
    if template.pieces_apart:
        notes.append(
            "From the second question on its prompts have other ids there: replies are encoded apart from what stands "
            "before them here, and transformers encodes a prompt as one text."
        )
    before = ""
    if template.adds_special_tokens:
        encoder = TextEncoder(tokenizer)
        alone, around = encoder.encode(WORD), encoder.encode_with_special_tokens(WORD)
        if around[-len(alone) :] != alone:
            notes.append(
                "The tokenizer puts tokens of its own behind a prompt, which no template can do: the tokenizer there "
                "has no template."
            )
            return None, notes
        before = "".join(tokenizer.convert_ids_to_tokens(around[: -len(alone)]))
    opening = f"{{{{- {json.dumps(before, ensure_ascii=False)} }}}}" if before else ""
    return opening + template.source, notes
