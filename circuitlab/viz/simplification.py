"""A text that becomes shorter: its words at every step, and the neuron's activation beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from circuitlab.viz.save import fit, new_figure, place
from circuitlab.viz.style import FAINT, INK, MUTED, sign_colour, style
from circuitlab.viz.text import clipped, drawable, number, text_width, visible_token

if TYPE_CHECKING:
    import pandas as pd

_LINE, _BAR = 0.19, 1.7
_LONGEST = 90


def simplification_figure(steps: pd.DataFrame) -> Figure:
    """One line a step: the text, and a bar for the activation at its last token.

    Args:
        steps: Columns activation, deleted (None at the first), text.

    Returns:
        The figure.
    """
    with style():
        texts = [drawable(clipped(visible_token(str(text)), _LONGEST)) for text in steps["text"]]
        widest = max(text_width(text, 7.5) for text in texts)
        figure = new_figure(widest + _BAR + 3, len(texts) * _LINE + 2)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label="steps")
        place(figure, axes, widest + 1.0, 1.0, _BAR, len(texts) * _LINE)
        values = [float(value) for value in steps["activation"]]
        places = range(len(values))
        axes.barh(list(places), values, height=0.62, color=[sign_colour(value) for value in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_yticks(list(places), texts, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", length=2.5, width=0.6, labelsize=7)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.axvline(values[0], color=MUTED, lw=0.7, ls=(0, (2, 2)))
        axes.spines[["top", "right", "left"]].set_visible(False)
        for place_, value in zip(places, values, strict=True):
            axes.annotate(
                number(value, 2), (max(value, 0.0), place_), (3, 0), textcoords="offset points", fontsize=6.5,
                color=INK, va="center",
            )  # fmt: skip
        axes.set_xlabel("neuron at the last token")
        fit(figure)
    return figure
