"""``paddlesft models``: what each model family can do here; with a family's name, everything about it."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from typing import TYPE_CHECKING, Any

from paddlesft.errors import UserError

if TYPE_CHECKING:
    from paddlesft.models.family import Family

WIDE = 100  # columns of a terminal from which on the table has room for models beside its marks

EXAMPLES = """\
examples:
  paddlesft models              the table of all families
  paddlesft models qwen2        one family: models, tokenizers, what is refused and why
  paddlesft models --json       the same facts for programs
"""


def find(name: str) -> Family:
    """Return the family of a name, of a value of ``model_type``, or of a model such as "ChatGLM3" or "gpt-3".

    Raises:
        UserError: there is none.
    """
    from paddlesft.models.families import FAMILIES

    by_name = {kind: family for family in FAMILIES for kind in family.model_types}
    by_name |= {family.name: family for family in FAMILIES}
    if name.lower() in by_name:
        return by_name[name.lower()]
    for family in FAMILIES:
        models = [letters(model) for model in family.title.split(" (")[0].split(", ")]
        if len(letters(name)) > 3 and any(model.startswith(letters(name)) for model in models):
            return family
    near = difflib.get_close_matches(name.lower(), by_name, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"there is no model family {name!r}.{hint} Allowed: {', '.join(f.name for f in FAMILIES)}.")


def letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))


def halves(word: str) -> str:
    """Return a word on two lines where it is longer than four letters."""
    middle = (len(word) + 1) // 2
    return f"{word[:middle]}\n{word[middle:]}" if len(word) > 4 else word


def facts(family: Family, refusals: dict[str, str]) -> dict[str, Any]:
    """Return everything about a family in plain values.

    Args:
        family: its row.
        refusals: of the capability table.
    """
    from paddlesft.models.capabilities import gguf_architectures

    configs = ["sft.yaml", "lora.yaml", *(["pt.yaml"] if family.prefix_tuning else [])]
    if not family.quantization_refusal:
        configs += ["ptq.json", "gptq.json", "wint8.json", "qlora.json"]
    return {
        "name": family.name,
        "title": family.title,
        "model_types": list(family.model_types),
        "status": family.status,
        "capabilities": {key: {"offered": not why, "reason": why} for key, why in refusals.items()},
        "classes": {"model": family.causal_lm, "config": family.config_class, "pipeline": family.pipe_class},
        "tokenizers": list(family.tokenizers),
        "chat_template": family.chat_template,
        "positions": family.positions,
        "one_reply_per_row": family.one_reply_per_row,
        "lora_target_modules": list(family.lora_target_modules),
        "gguf_architectures": gguf_architectures(family),
        "configs": [f"configs/{family.name}/{file}" for file in configs],
    }


def show_table(table: list[tuple[Family, dict[str, str]]]) -> None:
    """Print the capability table."""
    from rich.console import Console
    from rich.table import Table

    from paddlesft.models.capabilities import CAPABILITIES, short_title

    console = Console()
    wide = console.width >= WIDE
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    grid.add_column("family", no_wrap=True)
    if wide:
        grid.add_column("models", no_wrap=True)
    for capability in CAPABILITIES:
        grid.add_column("\n".join(map(halves, capability.title.split())), justify="center", no_wrap=True)
    for family, refusals in table:
        marks = ["[dim]-[/]" if refusals[capability.key] else "[green]✓[/]" for capability in CAPABILITIES]
        grid.add_row(family.name, *([short_title(family)] if wide else []), *marks)
    console.print(grid)
    console.print()
    if not wide:
        for family, _ in table:
            console.print(f"{family.name:<12}{short_title(family)}", highlight=False)
        console.print()
    console.print("✓ is proved by the tests. For a family and its reasons: paddlesft models NAME", highlight=False)


def show_family(family: Family, known: dict[str, Any]) -> None:
    """Print everything about one family."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from paddlesft.models.capabilities import CAPABILITIES

    console = Console()
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")

    def row(name: str, *lines: str) -> None:
        for i, line in enumerate(lines or ("-",)):
            grid.add_row("" if i else name, escape(line))

    row("family", family.name)
    row("models", family.title)
    mark = f", with {family.config_mark} in config.json" if family.config_mark else ""
    row("model_type", ", ".join(family.model_types) + mark)
    row("PaddleNLP", f"{family.causal_lm}, {family.config_class}")
    row("tokenizers", *(family.tokenizers or ("as the model's directory says; no pitfalls known",)))
    asked = "used" if family.needs_template else f"chat_template: {family.chat_template} asks for it"
    row("template", f"{family.chat_template}; {asked} where the tokenizer brings none")
    row("positions", family.positions)
    row("LoRA targets", " ".join(family.lora_target_modules))
    if family.one_reply_per_row:
        row(
            "conversations",
            "each reply is a row of its own, behind all before it: the prompt attends in both directions",
        )
    grid.add_row()
    for capability in CAPABILITIES:
        why = known["capabilities"][capability.key]["reason"]
        row(capability.title, f"no: {why}" if why else f"yes: {capability.meaning}")
    if known["gguf_architectures"]:
        row("", f"GGUF architecture: {', '.join(known['gguf_architectures'])}")
    grid.add_row()
    row("configs", *known["configs"])
    console.print(grid)


def run(argv: list[str]) -> int:
    """Show the families, or one of them.

    Args:
        argv: the arguments behind the verb.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="paddlesft models", description=__doc__, epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("family", nargs="?", help="show everything about this family (or value of model_type)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)

    from paddlesft.models.capabilities import capability_table

    chosen = find(options.family) if options.family else None
    table = [(family, refusals) for family, refusals in capability_table() if chosen in (None, family)]
    if options.json:
        known = [facts(family, refusals) for family, refusals in table]
        json.dump(known[0] if chosen else known, sys.stdout, indent=2, ensure_ascii=False)
        print()
    elif chosen:
        show_family(chosen, facts(*table[0]))
    else:
        show_table(table)
    return 0
