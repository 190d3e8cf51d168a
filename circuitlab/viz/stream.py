"""The logit lens: a metric along the residual stream, and the likeliest tokens at every point of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from circuitlab.viz.cells import draw_cells, draw_colour_bar, write_in_cells
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, MUTED, PAPER, POSITIVE, sequential
from circuitlab.viz.text import drawable, text_width, visible_token

_POINT, _LEAST_WIDTH, _HEIGHT = 0.27, 2.4, 2.6
# Single prompts shown with the mean: more would be a grey surface.
_MOST_LINES = 40
_CELL, _ROW = (0.5, 0.86), 0.24
# Columns of words: a page wide. Of a longer prompt the end is shown, where the answer is read.
_MOST_TOKENS = 24


def stream_figure(
    labels: Sequence[str],
    per_example: Float[np.ndarray, "point example"],
    low: Float[np.ndarray, " point"],
    high: Float[np.ndarray, " point"],
    *,
    title: str,
    quantity: str,
) -> Figure:
    """A number at every point of the stream: the mean with its interval over thin lines of single prompts.

    Args:
        labels: What was written last before each point.
        per_example: The values.
        low: Lower ends of the means' intervals.
        high: Upper ends.
        title: Over the figure.
        quantity: What the values are, with their unit.

    Returns:
        The figure.
    """
    width = max(_LEAST_WIDTH, _POINT * len(labels))
    at, mean = np.arange(len(labels)), per_example.mean(-1)
    with canvas(width, _HEIGHT, "stream") as (figure, axes):
        axes.axhline(0.0, color=MUTED, lw=0.6, zorder=1)
        axes.plot(at, per_example[:, :_MOST_LINES], color=FAINT, lw=0.5, zorder=1)
        axes.fill_between(at, low, high, color=POSITIVE, alpha=0.22, lw=0, zorder=2)
        axes.plot(at, mean, color=POSITIVE, lw=1.5, zorder=3)
        half = [label.startswith("attention") for label in labels]
        for hollow in (True, False):
            chosen = [i for i in at if half[i] == hollow]
            face = PAPER if hollow else POSITIVE
            axes.plot(chosen, mean[chosen], ls="", marker="o", ms=3.8, mfc=face, mec=POSITIVE, mew=1.0, zorder=4)
        axes.set_xlim(-0.4, len(labels) - 0.6)
        axes.grid(axis="y", color=FAINT, lw=0.4, zorder=0)
        axes.set_xticks(at, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlabel("stream after" + (" (hollow: mid-layer)" if any(half) else ""), color=MUTED)
        axes.set_ylabel(drawable(f"{quantity}\nmean, 95 % interval"))
        axes.set_title(drawable(title))
    return figure


def lens_figure(
    tokens: Sequence[str],
    labels: Sequence[str],
    words: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "point seq"],
) -> Figure:
    """The likeliest next token in each cell, points from top to bottom; darker: likelier.

    Args:
        tokens: The prompt; of a long one the last 24 are shown.
        labels: What was written last before each point.
        words: The likeliest token, by point and token of the prompt.
        probabilities: Its probability.

    Returns:
        The figure.
    """
    start = max(0, len(tokens) - _MOST_TOKENS)
    shown = [[drawable(visible_token(word, 10)) for word in row[start:]] for row in words]
    heads = [drawable(visible_token(token, 10)) for token in tokens[start:]]
    widest = max(text_width(text, 6.5) for row in [*shown, heads] for text in row)
    cell, n_rows, n_cols = float(np.clip(widest + 0.1, *_CELL)), len(labels), len(heads)
    with canvas(n_cols * cell, n_rows * _ROW, "words") as (figure, axes):
        mesh = draw_cells(axes, probabilities[:, start:], sequential(), Normalize(0.0, 1.0))
        texts = {(row, col): text for row, line in enumerate(shown) for col, text in enumerate(line)}
        write_in_cells(axes, mesh, texts, 6.5)
        axes.set_xticks(np.arange(n_cols) + 0.5, heads, fontsize=6.5)
        axes.xaxis.tick_top()
        axes.set_yticks(np.arange(n_rows) + 0.5, labels)
        axes.set_ylabel("stream after", color=MUTED)
        axes.set_title("Most likely next token" + (f", last {_MOST_TOKENS} tokens" if start else ""), pad=8)
        draw_colour_bar(figure, axes, mesh, "probability", min(1.6, n_rows * _ROW))
    return figure
