"""Interactive attention patterns: a page of their own, and a section of the report.

Without JavaScript, and in print, the page shows a picture; its script replaces it by an interactive view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from circuitlab.report.attention_data import AttentionData
from circuitlab.report.pictures import Picture, bitmap
from circuitlab.report.render import render


def attention_page(record: Mapping[str, Any]) -> Markup:
    """A page of its own.

    Args:
        record: The value of `AttentionPatterns.to_record`.

    Returns:
        The HTML.

    Raises:
        FormatError: The record is not of that form.
    """
    return render("attention.html.j2", attention=attention_values(AttentionData.of(record)))


def attention_picture(record: Mapping[str, Any]) -> Markup:
    """The picture alone, for a notebook cell.

    Returns:
        The HTML.

    Raises:
        FormatError: The record is not of that form.
    """
    return render("picture.html.j2", picture=_picture(AttentionData.of(record), None))


def attention_values(data: AttentionData, png: bytes | None = None) -> dict[str, Any]:
    """What `attention_view.html.j2` shows.

    Args:
        data: The patterns; one view a page.
        png: Their picture; drawn if None.

    Returns:
        Title, picture, number of heads and the data of the script.
    """
    return {
        "title": data.title,
        "n_heads": len(data.heads),
        "picture": _picture(data, png),
        "data": data.for_script(),
    }


def _picture(data: AttentionData, png: bytes | None) -> Picture:
    words = f"Attention patterns of {', '.join(data.heads)} on: {data.title}"
    return bitmap(data.png() if png is None else png, words)
