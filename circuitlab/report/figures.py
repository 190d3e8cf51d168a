"""Pictures inside the page: bitmaps as data, drawings as SVG elements whose identifiers clash with nothing."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from circuitlab.errors import FormatError
from circuitlab.report.folder import RunFolder, Sweep, damaged
from circuitlab.report.markup import Html, element, interval, number
from circuitlab.viz import FaithfulnessCurve, draw_circuit, faithfulness_figure, figure_bytes, heatmap

# Bitmaps are drawn at 160 dots per inch; a CSS pixel is a ninety-sixth of an inch.
_CSS_PIXELS = 96 / 160
_POINT = 96 / 72
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DROPPED = frozenset({"script", "style", "metadata", "foreignObject"})


def sweep_figure(sweep: Sweep) -> Html:
    """The heatmap of a sweep; drawn again from its table where the folder has no picture."""
    png = sweep.png
    if png is None:
        png = figure_bytes(heatmap(sweep.grid), "png")
    words = strongest_cell(sweep)
    return _figure(bitmap(png, f"Heatmap: {sweep.grid.title}. {words}"), words)


def bitmap(png: bytes, words: str) -> Html:
    """A PNG inside the page, with what it shows in words."""
    # A PNG says its width and height in the first chunk, after 16 bytes of signature and chunk head.
    width, height = struct.unpack(">II", png[16:24])
    return element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        alt=words,
        width=f"{width * _CSS_PIXELS:.0f}",
        height=f"{height * _CSS_PIXELS:.0f}",
    )


def strongest_cell(sweep: Sweep) -> str:
    """The cell farthest from the centre, in words."""
    grid = sweep.grid
    if not np.isfinite(grid.values).any():
        return "Nothing was measured."
    row, col = np.unravel_index(np.nanargmax(np.abs(grid.values - grid.centre)), grid.values.shape)
    label = grid.col_labels[col] + (f" (position {grid.col_numbers[col]})" if grid.col_numbers else "")
    ends = () if grid.low is None or grid.high is None else [float(grid.low[row, col]), float(grid.high[row, col])]
    value = " ".join(filter(None, (number(float(grid.values[row, col])), interval(ends))))
    return f"Strongest: {grid.row_title} {grid.row_labels[row]}, {grid.col_title} {label}: {value}."


def circuit_figure(run: RunFolder) -> Html:
    """The drawing of the circuit; drawn again where the folder has none."""
    svg = run.drawing
    if svg is None:
        svg = figure_bytes(draw_circuit(run.nodes, run.edges), "svg").decode()
    words = f"The circuit: {len(run.nodes)} nodes, {len(run.edges)} edges."
    try:
        return _figure(inline_svg(svg, "circuit", words), "")
    except ElementTree.ParseError as error:
        raise damaged(run.path, "circuit.svg", f"it is no SVG ({error})") from error


def curve_figure(run: RunFolder, evaluation: Mapping[str, Any]) -> Html:
    """Faithfulness against size."""
    try:
        curve = FaithfulnessCurve.of(evaluation)
    except FormatError as error:
        raise damaged(run.path, "evaluation.json", str(error).rstrip(".")) from error
    words = "Faithfulness against the number of edges kept."
    return _figure(inline_svg(figure_bytes(faithfulness_figure(curve), "svg").decode(), "curve", words), "")


def inline_svg(svg: str, prefix: str, label: str) -> Html:
    """An SVG file as an element of a page.

    Identifiers and what refers to them get a prefix; what would act on the rest of the page (style sheets) or run
    (scripts, event attributes) is left out.

    Args:
        svg: The file's text.
        prefix: Unique in the page.
        label: What the picture shows, for readers who cannot see it.

    Raises:
        xml.etree.ElementTree.ParseError: It is no XML.
    """
    root = ElementTree.fromstring(svg)
    for node in list(root.iter()):
        for child in list(node):
            if not isinstance(child.tag, str) or _local(child.tag) in _DROPPED:
                node.remove(child)
    for node in root.iter():
        node.tag = _local(node.tag)
        node.attrib = _own_attributes(node.attrib, prefix)
    width, height = (float(re.sub(r"[^\d.]", "", root.attrib.get(side, "")) or 0) for side in ("width", "height"))
    root.attrib |= {
        "width": f"{width * _POINT:.0f}",
        "height": f"{height * _POINT:.0f}",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
        "role": "img",
        "aria-label": label,
    }
    root.tail = None
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _own_attributes(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    own = {}
    for name, value in attributes.items():
        local = _local(name)
        if local.lower().startswith("on") or (local == "href" and not value.startswith("#")):
            continue
        if local == "id":
            value = f"{prefix}-{value}"
        elif local == "href":
            value = f"#{prefix}-{value[1:]}"
        own[local] = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    return own


def _local(name: str) -> str:
    """A name without its namespace: inside a page, SVG needs none."""
    return name.rsplit("}", 1)[-1]


def _figure(picture: Html, caption: str) -> Html:
    body = element("div", picture, class_="scroll")
    return element("figure", body, element("figcaption", caption) if caption else None)
