"""Templates that a blank-filling model cannot read are refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paddlesft.data.prompt_marks import check_marks
from paddlesft.data.rendering import Renderer
from paddlesft.data.templates import load_template
from paddlesft.errors import ConfigError
from paddlesft.models import load_tokenizer
from paddlesft.models.families import FAMILIES, family_named


def renderer_of(directory: Path, family: str, template: str) -> Renderer:
    tokenizer = load_tokenizer(directory)
    one_reply_per_row = family_named(family).one_reply_per_row
    return Renderer(tokenizer, load_template(tokenizer, template), one_reply_per_row=one_reply_per_row)


@pytest.mark.parametrize(
    ("family", "template", "marks"),
    [
        ("glm", "plain", "[gMASK]<|endoftext|><|startofpiece|>"),
        ("glm", "chatml", "[gMASK]<|endoftext|><|startofpiece|>"),
        ("chatglm", "qwen", "[gMASK]<sop>"),
    ],
)
def test_a_template_without_the_marks_is_refused(
    family: str, template: str, marks: str, tiny_family: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_marks(renderer_of(tiny_family(family), family, template), family_named(family))
    assert str(refused.value) == (
        f"chat_template: prompts of {template!r} do not end in {marks}, behind which models of family {family} write "
        f"their replies. Set chat_template to {family}, or to a template whose prompts end in {marks}."
    )


@pytest.mark.parametrize(
    ("family", "template"),
    [("glm", "glm"), ("chatglm", "chatglm"), ("chatglm", "plain"), ("chatglm", "alpaca"), ("chatglm_v2", "qwen")],
)
def test_templates_that_a_family_can_read_pass(family: str, template: str, tiny_family: Callable[[str], Path]) -> None:
    check_marks(renderer_of(tiny_family(family), family, template), family_named(family))


def test_the_families_that_are_checked_have_a_template_with_marks(tiny_family: Callable[[str], Path]) -> None:
    checked = [family for family in FAMILIES if family.one_reply_per_row]
    assert {family.name for family in checked} == {"chatglm", "glm"}
    for family in checked:
        check_marks(renderer_of(tiny_family(family.name), family.name, family.chat_template), family)
