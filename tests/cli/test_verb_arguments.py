"""Two paths and options, in either order."""

from __future__ import annotations

import pytest

from paddlesft.cli.verb_arguments import split_positionals
from paddlesft.errors import UserError


def split(*argv: str) -> tuple[list[str], list[str]]:
    return split_positionals(argv, ("FILE", "DIR"), "usage: x FILE DIR")


def test_positionals_stand_before_or_behind_the_options() -> None:
    assert split("a", "b", "--overwrite") == (["a", "b"], ["--overwrite"])
    assert split("--dtype", "float16", "a", "b") == (["a", "b"], ["--dtype", "float16"])
    assert split("dtype=float16", "runs/x=1/m.gguf", "b") == (["runs/x=1/m.gguf", "b"], ["dtype=float16"])
    with pytest.raises(UserError, match=r"^FILE and DIR are needed; found: a\. usage: x FILE DIR$"):
        split("a")
