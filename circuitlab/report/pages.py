"""Pages and notebook cells of results, and the report of a run. Those of attention patterns are in `attention`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from circuitlab.drawing import shows
from circuitlab.report import (
    attention,  # noqa: F401 - registers its pages
    text_view,
)
from circuitlab.report.page import write_page

if TYPE_CHECKING:
    from circuitlab.data.text_values import TextPage
    from circuitlab.runs.record import RunRecord


@shows("page", "circuitlab.data.text_values:TextPage")
def texts(page: TextPage) -> str:
    """Texts coloured token by token."""
    return text_view.page(page.texts, title=page.title)


@shows("cell", "circuitlab.data.text_values:TextPage")
def texts_cell(page: TextPage) -> str:
    """The page in a frame of its own."""
    return text_view.frame(page.texts, title=page.title)


@shows("report", "circuitlab.runs.record:RunRecord")
def report(_run: RunRecord, folder: Path, name: str, hashed: Mapping[str, str]) -> None:
    """The report of a run, from what its folder holds."""
    write_page(folder, name, hashed)
