"""A model that fills a blank finds its place by the tokens that a prompt ends in: a template has to write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import builtin_template
from paddlesft.errors import ConfigError

if TYPE_CHECKING:
    from paddlesft.models.family import Family

QUESTIONS = ("first question", "Another one, 2?")


def check_marks(renderer: Renderer, family: Family) -> None:
    """Refuse a template without the mark that the replies of a family's models begin behind, before a model is loaded.

    Args:
        renderer: as training uses it.
        family: the row of the model.

    Raises:
        ConfigError: prompts of the template lack the mark with which those of the family's own template end.
    """
    if not family.one_reply_per_row:
        return
    own = builtin_template(family.chat_template, renderer.template.special_tokens)
    wanted = Renderer(renderer.tokenizer, own, one_reply_per_row=True)
    first, second = (wanted.render_prompt([{"role": "user", "content": text}]) for text in QUESTIONS)
    same = next(i for i, (a, b) in enumerate(zip(reversed(first), reversed(second))) if a != b)
    marks = first[len(first) - same :]
    if marks and marks[-1] not in renderer.render_prompt([{"role": "user", "content": QUESTIONS[0]}]):
        written = renderer.encoder.decode(marks)
        raise ConfigError(
            f"chat_template: prompts of {renderer.template.name!r} do not end in {written}, behind which models of "
            f"family {family.name} write their replies. Set chat_template to {family.chat_template}, or to a template "
            f"whose prompts end in {written}."
        )
