"""The legend of a circuit drawing: colour, width, q k v and fill."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from circuitlab.viz.drawn import DrawnEdge
from circuitlab.viz.looks import Look, Looks, line_width
from circuitlab.viz.style import INK, MUTED, NEGATIVE, POSITIVE, UNKNOWN, diverging
from circuitlab.viz.text import drawable, significant

_LINE = 0.17
_SAMPLE = 0.3
_BAR = (1.15, 0.1)


def draw_legend(
    axes: Axes, corner: tuple[float, float], *, edges: Sequence[DrawnEdge], node_reach: float | None, looks: Looks
) -> None:
    """Draw the key downwards from its upper left corner, with only the entries that the drawing needs.

    Args:
        axes: Its coordinates are inches.
        corner: Left and top in these coordinates.
        edges: The edges drawn.
        node_reach: Largest effect of a node without its sign, if they are filled by their effects.
        looks: Meaning of the lines.
    """
    x, y = corner
    y = _heading(axes, x, y, "edges (upwards)")
    strongest = max((edge.strength for edge in edges), default=0.0)
    for colour, text, wanted in (
        (POSITIVE, "helps (score > 0)", any(edge.score >= 0 for edge in edges)),
        (NEGATIVE, "hurts (score < 0)", any(edge.score < 0 for edge in edges)),
        (UNKNOWN, "not scored", looks.shows_score and any(edge.score != edge.score for edge in edges)),
    ):
        if wanted:
            y = _line(axes, x, y, text, Look(colour, line_width(strongest / 2, strongest)))
    if len(edges) > 1:
        axes.text(x, y, "edges leaving the same node are bundled", fontsize=6.5, color=MUTED, va="center")
        y -= _LINE
    if looks.key:
        y = _heading(axes, x, y - 0.06, looks.heading)
    for look, text in looks.key:
        y = _line(axes, x, y, drawable(text), look)
    if any(edge.slot for edge in edges):
        y = _heading(axes, x, y - 0.06, "inputs of a head")
        for slot, word in (("q", "query"), ("k", "key"), ("v", "value")):
            axes.text(x + _SAMPLE / 2, y, slot, fontsize=6, fontweight="bold", color=INK, va="center", ha="center")
            axes.text(x + _SAMPLE + 0.08, y, word, fontsize=7, color=INK, va="center")
            y -= _LINE
    if node_reach is not None:
        y = _heading(axes, x, y - 0.06, "effect of patching the node alone")
        _bar(axes, x, y, node_reach)


def _heading(axes: Axes, x: float, y: float, text: str) -> float:
    axes.text(x, y, text, fontsize=7, color=MUTED, va="center")
    return y - _LINE


def _line(axes: Axes, x: float, y: float, text: str, look: Look) -> float:
    axes.plot(
        [x, x + _SAMPLE], [y, y], color=look.colour, linewidth=look.width, linestyle=look.dashes, clip_on=False,
        solid_capstyle="butt", dash_capstyle="butt",
    )  # fmt: skip
    axes.text(x + _SAMPLE + 0.08, y, text, fontsize=7, color=INK, va="center")
    return y - _LINE


def _bar(axes: Axes, x: float, y: float, reach: float) -> None:
    """A colour bar lying flat, with its ends and its middle."""
    width, height = _BAR
    edges = np.linspace(x, x + width, 97)
    bottom = y - height / 2
    axes.pcolormesh(
        edges, [bottom, bottom + height], np.linspace(-reach, reach, 96)[None, :], cmap=diverging(),
        edgecolors="face", linewidth=0.6, clip_on=False,
    )  # fmt: skip
    for share, value, align in ((0.0, -reach, "left"), (0.5, 0.0, "center"), (1.0, reach, "right")):
        axes.text(x + share * width, bottom - 0.05, significant(value), fontsize=6.5, color=INK, va="top", ha=align)
    axes.text(x, bottom - 0.2, "0 = corrupted, 1 = clean", fontsize=6.5, color=MUTED, va="top")
