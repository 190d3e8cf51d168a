"""Findings as a table: to the terminal, and into the generated part of a page.

A page keeps its prose. What a command writes stands between two comments that carry a key; everything between them is
replaced, and a page without them gets them at its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.findings import HEADER, Finding

# Columns of the table where there is no terminal to ask.
WIDTH = 160


def print_findings(title: str, findings: Sequence[Finding], judged: bool = True) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_lines=True)
    for name in HEADER:
        table.add_column(name)
    for finding in findings:
        table.add_row(*(cell.replace("**", "") for cell in finding.cells(judged)))
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    console.print(table)


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def performance_page(
    command: str, facts: Mapping[str, str], sections: Mapping[str, Sequence[Finding]], rounds: int, quick: bool
) -> str:
    """The generated part of docs/performance.md."""
    rows = [("Command", f"`{command}`"), *facts.items(), ("Rounds", str(rounds))]
    parts = [as_markdown(("Measured", "On"), rows)]
    if quick:
        parts.append(
            "**A quick run**: few prompts, one round, whatever else the machine was doing. It shows that everything "
            "runs and agrees; its times are not to be held against the targets. `make bench` replaces it."
        )
    for title, findings in sections.items():
        parts += [f"### {title}", as_markdown(HEADER, [finding.cells(not quick) for finding in findings])]
    return "\n\n".join(parts)


def write_generated(page: Path, key: str, text: str) -> None:
    """Put a text into the part of the page that carries this key."""
    begin, end = f"<!-- begin {key} -->", f"<!-- end {key} -->"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    part = f"{begin}\n\n{text}\n\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    after, replaced = pattern.subn(lambda _: part, before, count=1)
    page.write_text(after if replaced else f"{before.rstrip()}\n\n{part}\n".lstrip(), encoding="utf-8")
