"""Which results have pages, and which a view of their own in notebooks; runs have a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from circuitlab.drawing import shows
from circuitlab.report import text_view
from circuitlab.report.attention_view import attention_page, attention_picture
from circuitlab.report.page import write_report

if TYPE_CHECKING:
    from circuitlab.attribution.patterns import AttentionPatterns
    from circuitlab.data.text_values import TextPage
    from circuitlab.runs.record import RunRecord


@shows("page", "circuitlab.attribution.patterns:AttentionPatterns")
def attention(patterns: AttentionPatterns) -> str:
    """A page to look around in: choose a head, point at a token."""
    return attention_page(patterns.to_record())


@shows("cell", "circuitlab.attribution.patterns:AttentionPatterns")
def attention_cell(patterns: AttentionPatterns) -> str:
    """The picture alone, which needs no script."""
    return attention_picture(patterns.to_record())


@shows("page", "circuitlab.data.text_values:TextPage")
def texts(page: TextPage) -> str:
    """Texts coloured token by token."""
    return text_view.page(page.texts, title=page.title)


@shows("cell", "circuitlab.data.text_values:TextPage")
def texts_cell(page: TextPage) -> str:
    """The page in a frame of its own."""
    return text_view.frame(page.texts, title=page.title)


@shows("report", "circuitlab.runs.record:RunRecord")
def report(_run: RunRecord, folder: Path, name: str) -> None:
    """The report of a run, from what its folder holds."""
    write_report(folder, name=name)
