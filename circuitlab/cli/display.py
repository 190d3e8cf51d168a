"""Results on stdout: a table that fits 80 columns, or one JSON object."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlab.cli.visible import visible, visible_json
from circuitlab.result import plain

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.data.framing import PromptFrame

# Headings of columns whose name in files is too short for a reader.
HEADINGS = {"ci_low": "95 % low", "ci_high": "95 % high", "strongest_at": "strongest at"}
QUOTED = ("label", "token", "most_changed", "deleted")  # columns of text whose spaces count
SMALLEST_P = 0.001
FEW_WORDS = 5


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stdout; numbers that are none (NaN, infinite) become null."""
    print(visible_json(json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False)))


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """A title and two columns, name and value. Long values fold; nothing is read as markup."""
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(_text(name), _text(value))
    _put(_text(title, style="bold"), table)


def print_around(frame: "PromptFrame | None") -> None:
    """Say on stderr what stands around the prompts, if anything does."""
    if frame is not None:
        print_note(frame.sentence)


def print_note(sentence: str) -> None:
    """Say a sentence on stderr, whatever goes to stdout."""
    print(visible(f"circuitlab: {sentence}"), file=sys.stderr, flush=True)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """A table with a header; the columns named in `right` hold numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    numbers = set(right)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    _put(table)


def print_table(table: "pd.DataFrame | Sequence[Mapping[str, Any]]", columns: Iterable[str] = ()) -> None:
    """A table with a header: numbers to three digits, at the right; tokens in quotes.

    Args:
        table: A data frame, or records.
        columns: The columns to print, in order, or their headings by name; all by default.
    """
    rows = table if isinstance(table, Sequence) else table.to_dict(orient="records")
    names = list(columns) or list(rows[0] if rows else ())
    headings = columns if isinstance(columns, Mapping) else {name: HEADINGS.get(name, name) for name in names}
    numbers = [headings[name] for name in names if all(isinstance(row[name], int | float) for row in rows)]
    cells = [[_cell(name, row[name]) for name in names] for row in rows]
    print_rows([headings[name] for name in names], cells, right=numbers)


def _cell(column: str, value: Any) -> str:
    if column == "p_value" and value < SMALLEST_P:
        return f"<{SMALLEST_P}"
    if column in QUOTED and isinstance(value, str):
        return repr(value)
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


def alternatives(words: Sequence[str]) -> str:
    """Write answers or distractors, the first five of them.

    Returns:
        The text.
    """
    more = [f"{len(words) - FEW_WORDS} more"] if len(words) > FEW_WORDS else []
    return " or ".join([*map(repr, words[:FEW_WORDS]), *more])


def print_line(text: str) -> None:
    """A line that is never folded, so that a path can be copied."""
    print(visible(text))


def print_unscored(name: str, n_edges: int) -> None:
    """Print the number of kept edges without a score, if there are any."""
    if n_edges:
        print_line(f"{name}: {n_edges:,} of its edges have no score (NaN); they are kept.")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` decimal places.

    Returns:
        The text; `-` for None and NaN.
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.000"


def _put(*things: Text | Table) -> None:
    """Print on stdout, in colour where the terminal has it, without the blanks that fill up lines."""
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for thing in things:
            console.print(thing)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _text(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style)
