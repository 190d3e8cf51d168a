"""Attention patterns to look around in: a page by itself, and a section of the report.

The picture is there without JavaScript and in print; the page's one script puts the interactive view in its place on a
screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitlab.report.attention_data import AttentionData
from circuitlab.report.attention_script import ATTENTION_SCRIPT, ATTENTION_STYLE
from circuitlab.report.document import data_block, document
from circuitlab.report.markup import Html, element
from circuitlab.report.pictures import bitmap

_HOW = (
    "Each row of a pattern says how much the token on the left looks at the tokens below; a row sums to 1. Where "
    "scripts run, choose a head and point at a token, or click it to hold it."
)


def attention_view(data: AttentionData, png: bytes | None = None) -> Html:
    """The picture, the place for the interactive view, and its data; the page needs `ATTENTION_SCRIPT` beside.

    Args:
        data: The patterns; one view a page.
        png: Their picture, if it is there already.
    """
    return element(
        "div",
        element("figure", attention_image(data, png), class_="attention-still"),
        element("div", class_="attention-live", id="attention-live", hidden=""),
        data_block("attention-data", data.for_script()),
        class_="attention",
    )


def attention_image(data: AttentionData, png: bytes | None = None) -> Html:
    """The picture as an element; drawn again where there is none."""
    words = f"Attention patterns of {', '.join(data.heads)} on: {data.title}"
    return element("div", bitmap(data.png() if png is None else png, words), class_="scroll")


def attention_page(record: Mapping[str, Any]) -> str:
    """A page of its own.

    Args:
        record: What `AttentionPatterns.to_record` gives.

    Raises:
        FormatError: It is no such record.
    """
    data = AttentionData.of(record)
    return document(
        "Attention patterns · circuitlab",
        element(
            "header",
            element("p", "Attention patterns", class_="kicker"),
            element("h1", data.title or "Attention patterns"),
            element("p", _HOW, class_="note"),
        ),
        attention_view(data),
        style=ATTENTION_STYLE,
        script=ATTENTION_SCRIPT,
    )


def attention_picture(record: Mapping[str, Any]) -> str:
    """The picture alone as HTML, for a notebook cell.

    Raises:
        FormatError: It is no such record.
    """
    return attention_image(AttentionData.of(record))


def attention_section(data: AttentionData | None, png: bytes | None = None) -> Html | None:
    """The section of the report; None for runs without patterns."""
    if data is None:
        return None
    heads = "The head" if len(data.heads) == 1 else f"The {len(data.heads)} heads"
    lede = (
        f"{heads} of the circuit whose patch restores most, on the first held-out clean prompt; beside each name "
        "stands the share restored. "
    )
    return element(
        "section",
        element("h2", "Where its heads look"),
        element("p", lede + _HOW, class_="note"),
        attention_view(data, png),
    )
