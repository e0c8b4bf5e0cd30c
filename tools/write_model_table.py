"""Write the table of model families into both READMEs: python tools/write_model_table.py [--check]

With --check nothing is written; the exit code is 1 when a table is not what the family table says.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from paddlesft.models.capabilities import CAPABILITIES, capability_table, short_title  # noqa: E402

BEGIN, END = "<!-- models: written by tools/write_model_table.py -->", "<!-- end of models -->"
HEADS = {"README.md": ("family", "models"), "README_zh.md": ("模型族", "模型")}


def table(page: str) -> str:
    """Return the table of a page (a key of ``HEADS``) in Markdown."""
    titles = [c.title_zh if page == "README_zh.md" else c.title for c in CAPABILITIES]
    lines = ["| " + " | ".join([*HEADS[page], *titles]) + " |", "|---|---|" + ":-:|" * len(titles)]
    for family, refusals in capability_table():
        marks = ["" if refusals[capability.key] else "✓" for capability in CAPABILITIES]
        lines.append("| " + " | ".join([f"`{family.name}`", short_title(family), *marks]) + " |")
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """Return the text of a page with the table between its marks renewed.

    Raises:
        ValueError: the marks are missing.
    """
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?(\n{re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} has no place for the table: lines {BEGIN} and {END}")
    return pattern.sub(lambda match: match[1] + table(page) + match[2], text)


def main(argv: list[str] | None = None) -> int:
    """Write or check both pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which table is out of date")
    check = parser.parse_args(argv).check
    stale = 0
    for page in HEADS:
        path = REPO / page
        text = path.read_text(encoding="utf-8")
        renewed = with_table(page, text)
        stale += renewed != text
        if check and renewed != text:
            print(f"{page}: the table of models is out of date. Run: python tools/write_model_table.py")
        elif not check:
            path.write_text(renewed, encoding="utf-8")
            print(f"{page}: {len(table(page).splitlines()) - 2} families")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
