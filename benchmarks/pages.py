"""Putting figures into a page of the documentation, between two markers."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def write_page(page: Path, text: str, begin: str, end: str) -> None:
    """Replace what stands between two markers, which both have lines of their own.

    Args:
        page: has each marker once.
        text: the figures.
        begin: the marker above them.
        end: the marker below them.
    """
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    if old.count(begin) != 1 or old.count(end) != 1:
        sys.exit(f"{page}: {begin} and {end} should stand there once each. The figures were not written.")
    head, tail = old.split(begin)[0], old.split(end)[1]
    page.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")
    print(f"\nwritten into {page.relative_to(REPO)}")
