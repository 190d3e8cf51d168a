"""Attention patterns: a page of their own, the picture of a notebook cell, and the values of a section of the report.

Without JavaScript, and in print, a page shows a picture; its script replaces it by an interactive view.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from circuitlab.attribution.patterns import DIGITS, AttentionPatterns
from circuitlab.drawing import shows
from circuitlab.report.pictures import Picture, bitmap
from circuitlab.report.render import render
from circuitlab.viz import figure_bytes, plot, visible_token


@shows("page", "circuitlab.attribution.patterns:AttentionPatterns")
def attention_page(found: AttentionPatterns) -> Markup:
    """A page: select a head, point at a token."""
    return render("attention.html.j2", attention=attention_values(found))


@shows("cell", "circuitlab.attribution.patterns:AttentionPatterns")
def attention_cell(found: AttentionPatterns) -> Markup:
    """The picture alone, which needs no script."""
    return render("picture.html.j2", picture=_picture(found, None))


def attention_values(found: AttentionPatterns, png: bytes | None = None) -> dict[str, Any]:
    """What `attention_view.html.j2` shows.

    Args:
        found: The patterns; one view a page.
        png: Their picture; drawn if None.

    Returns:
        Title, picture, number of heads and the data of the script: visible tokens, whole rows of weights.
    """
    heads = [
        {"head": head, "note": found.notes.get(head, ""), "weights": pattern.round(DIGITS).tolist()}
        for head, pattern in zip(found.heads, found.patterns, strict=True)
    ]
    return {
        "title": found.title,
        "n_heads": len(heads),
        "picture": _picture(found, png),
        "data": {"tokens": list(map(visible_token, found.tokens)), "heads": heads},
    }


def _picture(found: AttentionPatterns, png: bytes | None) -> Picture:
    words = f"Attention patterns of {', '.join(found.heads)} on: {found.title}"
    return bitmap(figure_bytes(plot(found), "png") if png is None else png, words)
