"""``paddlesft doctor``: versions found against versions known to work, the machine, and what to do about problems."""

from __future__ import annotations

import argparse
import json
import sys

from paddlesft import environment
from paddlesft.cli.main import program
from paddlesft.environment import Finding, Report
from paddlesft.known_versions import EMBEDDED_MODEL, EMBEDDED_MODEL_COMMAND

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "problem": "[red]✗[/]"}


def summary_of_extra(extra: str, findings: list[Finding]) -> Finding:
    """Fold the parts of one extra into a single finding with one command.

    Args:
        extra: its name, as in ``pip install '.[NAME]'``.
        findings: one for each of its packages.
    """
    lacking = [finding for finding in findings if finding.status != "ok"]
    if not lacking:
        return Finding(extra, "ok", "complete: " + ", ".join(f"{f.topic} {f.found}" for f in findings))
    names = ", ".join(f"{f.topic} {f.found}" for f in lacking)
    commands = [f"pip install -c constraints.txt -e '.[{extra}]'"]
    if any(finding.topic == EMBEDDED_MODEL.name for finding in lacking):
        commands.append(EMBEDDED_MODEL_COMMAND)
    status = "problem" if any(finding.status == "problem" for finding in lacking) else "note"
    return Finding(extra, status, names, action="; ".join(commands))


def show(report: Report) -> None:
    """Print a report as tables, then what to do about each note and problem."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()

    def table(title: str, findings: list[Finding], compared: bool) -> None:
        grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        grid.add_column("", header_style="dim")
        grid.add_column("part", no_wrap=True, header_style="dim")
        grid.add_column("found", overflow="fold", header_style="dim")
        if compared:
            grid.add_column("known to work", overflow="fold", header_style="dim")
        for finding in findings:
            cells = [finding.topic, escape(finding.found)] + [escape(finding.wanted)] * compared
            grid.add_row(MARKS[finding.status], *cells)
        console.print(grid)
        console.print()

    extras = [summary_of_extra(extra, findings) for extra, findings in report.extras.items()]
    table("Machine", report.machine, compared=True)
    table("Packages", report.packages, compared=True)
    table("Optional parts", extras, compared=False)

    findings = [*report.machine, *report.packages, *extras]
    for status, heading in (("problem", "Problems"), ("note", "Notes")):
        chosen = [finding for finding in findings if finding.status == status]
        if chosen:
            console.print(f"[bold]{heading}[/]")
        for finding in chosen:
            console.print(f"{MARKS[status]} {finding.topic}: {escape(finding.found)}", soft_wrap=True, highlight=False)
            console.print(f"    {escape(finding.action)}", soft_wrap=True, highlight=False)
        if chosen:
            console.print()
    problems = sum(finding.status == "problem" for finding in findings)
    if problems:
        console.print(f"{problems} problem{'s' if problems > 1 else ''} found.")
    else:
        console.print(f"Healthy. Next: {program()} demo")


def run(argv: list[str]) -> int:
    """Examine the machine and show the result.

    Args:
        argv: the arguments behind the verb.

    Returns:
        0 when nothing has to be mended, 1 when there is at least one problem.
    """
    parser = argparse.ArgumentParser(prog="paddlesft doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--no-import", action="store_true", help="read metadata only; do not import paddle (under 1 s)")
    options = parser.parse_args(argv)
    report = environment.examine(import_paddle=not options.no_import)
    if options.json:
        json.dump(report.as_dict(), sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        show(report)
    return 0 if report.healthy else 1
