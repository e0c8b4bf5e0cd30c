"""Help pages and docs/config.md are made from the declarations and are current."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from paddlesft.config import RUN_GROUPS
from paddlesft.config.reference import help_text, markdown, sections
from paddlesft.config.renamed import TRAINING_OLD_KEYS
from paddlesft.config.verbs import VERB_GROUPS

REPO = Path(__file__).resolve().parents[2]
ALL = {**RUN_GROUPS, **VERB_GROUPS}


def test_docs_config_md_is_current() -> None:
    spec = importlib.util.spec_from_file_location("writer", REPO / "tools" / "write_config_reference.py")
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    text = (REPO / "docs" / "config.md").read_text(encoding="utf-8")
    assert text == writer.reference(), "run: python tools/write_config_reference.py"


@pytest.mark.parametrize("name", ALL)
def test_every_key_stands_in_help_and_reference_once(name: str) -> None:
    cls = ALL[name]
    shown, table = help_text({name: cls}), markdown({name: cls})
    body = re.split(r"^(?:Not built yet|Accepted without effect)", shown, flags=re.M)
    named_only = set(" ".join(body[1:]).replace(",", " ").split())
    for spec in dataclasses.fields(cls):
        assert table.count(f"\n| `{spec.name}` |") == 1, spec.name
        live = f"\n  --{spec.name}  " in shown
        assert live != (spec.name in named_only), spec.name


@pytest.mark.parametrize("name", ALL)
def test_every_key_is_described(name: str) -> None:
    for spec in dataclasses.fields(ALL[name]):
        text = spec.metadata["help"]
        assert text[0].isupper() or text.startswith("auto"), spec.name
        assert text.rstrip(")").endswith((".", "...")), spec.name
        assert spec.metadata["no_effect"] is None or not spec.metadata["no_effect"].endswith("."), spec.name


def test_sections_follow_the_files() -> None:
    titles = [section.title for section in sections({"training": RUN_GROUPS["training"]})]
    assert titles == [
        "Run, optimiser, evaluation, saving, logging",
        "Device, precision, memory, speed",
        "Several processes",
        "Seldom needed",
    ]


def test_help_names_type_range_default_and_old_names_stand_in_the_reference() -> None:
    text = help_text(RUN_GROUPS, "usage: paddlesft train FILE")
    assert text.startswith("usage: paddlesft train FILE\n\n")
    assert "  --lora_rank  an integer at least 1 (default 8)\n      Rank of the adapters.\n" in text
    assert "  --lora_alpha  a number greater than 0 or null\n" in text
    assert "| `packing` | true or false | `false` |" in markdown(RUN_GROUPS)
    assert "Old names: `intokens`, `zero_padding`, `padding_free`, `neat_packing`." in markdown(RUN_GROUPS)


def test_old_keys_are_listed_with_what_becomes_of_them() -> None:
    table = markdown({}, TRAINING_OLD_KEYS)
    for name, old in TRAINING_OLD_KEYS.items():
        assert old.summary, name
        assert f"| `{name}` | " in table
