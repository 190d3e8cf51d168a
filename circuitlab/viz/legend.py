"""The legend of a circuit drawing: colour, width, q k v and fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from circuitlab.viz.looks import SOLID, Dashes, Looks
from circuitlab.viz.style import INK, MUTED, NEGATIVE, POSITIVE, UNKNOWN, Colour, diverging
from circuitlab.viz.text import MINUS, drawable

_LINE = 0.17
_SAMPLE = 0.3
_BAR = (1.15, 0.1)


def draw_legend(
    axes: Axes,
    corner: tuple[float, float],
    *,
    strongest: float,
    line_width: Callable[[float], float],
    scores: Sequence[float],
    slots: bool,
    node_reach: float | None,
    looks: Looks | None = None,
) -> None:
    """Draw the key downwards from its upper left corner, with only the entries that the drawing needs.

    Args:
        axes: Its coordinates are inches.
        corner: Left and top in these coordinates.
        strongest: The largest score without its sign.
        line_width: Score -> width of its line in points.
        scores: The scores of the edges drawn.
        slots: Whether an edge enters a head.
        node_reach: Largest effect of a node without its sign, if they are filled by their effects.
        looks: Meaning of the lines, if it is not the score.
    """
    x, y = corner
    y = _heading(axes, x, y, "edges (upwards)")
    shown = scores if looks is None else [score for score in scores if score == score]
    for colour, text, wanted in (
        (POSITIVE, "helps (score > 0)", any(score >= 0 for score in shown)),
        (NEGATIVE, "hurts (score < 0)", any(score < 0 for score in shown)),
        (UNKNOWN, "not scored", any(score != score for score in shown)),
    ):
        if wanted:
            y = _line(axes, x, y, text, colour, line_width(strongest / 2))
    if len(scores) > 1:
        axes.text(x, y, "edges leaving the same node are bundled", fontsize=6.5, color=MUTED, va="center")
        y -= _LINE
    if looks is not None:
        y = _heading(axes, x, y - 0.06, looks.heading)
        for look, text in looks.key:
            y = _line(axes, x, y, drawable(text), look.colour, look.width, look.dashes)
    elif strongest > 0:
        y = _heading(axes, x, y - 0.06, "|score|")
        shares = (1.0, 0.25, 0.05) if len(scores) > 1 else (1.0,)
        for share in shares:
            y = _line(axes, x, y, _short(strongest * share), MUTED, line_width(strongest * share))
    if slots:
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


def _line(axes: Axes, x: float, y: float, text: str, colour: Colour, width: float, dashes: Dashes = SOLID) -> float:
    axes.plot(
        [x, x + _SAMPLE], [y, y], color=colour, linewidth=width, linestyle=dashes, clip_on=False, solid_capstyle="butt",
        dash_capstyle="butt",
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
        axes.text(x + share * width, bottom - 0.05, _short(value), fontsize=6.5, color=INK, va="top", ha=align)
    axes.text(x, bottom - 0.2, "0 = corrupted, 1 = clean", fontsize=6.5, color=MUTED, va="top")


def _short(value: float) -> str:
    """Two significant digits, never in exponents unless the number is tiny."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    written = f"{value:.{digits}f}" if digits <= 5 else f"{value:.1e}"
    return written.replace("-", MINUS)
