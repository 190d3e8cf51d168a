"""Rows of pairs for tests, and files of them in the shapes that people have."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from circuitlab import load_task

OURS = ("clean", "corrupt", "answer", "distractor")


@cache
def pairs(model: Any, n: int = 12) -> tuple[dict[str, str], ...]:
    """2n pairs of a built-in task, no text of which occurs twice."""
    drawn = load_task("name-throw").pairs(model, n=n)
    both = (*drawn.discovery, *drawn.held_out)
    return tuple(dict(zip(OURS, (p.clean, p.corrupt, p.answers[0], p.distractors[0]), strict=True)) for p in both)


def renamed(rows: Iterable[Mapping[str, Any]], **names: str) -> list[dict[str, Any]]:
    """Rows with other names of columns; a column without a new name is left out."""
    return [{names[name]: value for name, value in row.items() if name in names} for row in rows]


def separated(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", index: bool = False) -> str:
    """The rows as CSV, with a nameless column in front as pandas writes one."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*([""] if index else []), *rows[0]])
    for number, row in enumerate(rows):
        writer.writerow([*([number] if index else []), *row.values()])
    return out.getvalue()


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def saved(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path
