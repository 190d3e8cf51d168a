"""The logit lens: a metric along the residual stream, and the likeliest tokens at every point of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from circuitlab.viz.save import fit, new_figure, place
from circuitlab.viz.style import FAINT, INK, MUTED, PAPER, POSITIVE, sequential, style, text_on
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
    with style():
        figure = new_figure(width + 3.0, _HEIGHT + 2.5)
        axes = figure.add_axes((0.1, 0.1, 0.5, 0.5), label="stream")
        place(figure, axes, 1.5, 1.5, width, _HEIGHT)
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
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=FAINT, lw=0.4, zorder=0)
        axes.set_xticks(at, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
        axes.tick_params(length=2.5, width=0.6, labelsize=7)
        axes.set_xlabel("stream after" + (" (hollow: mid-layer)" if any(half) else ""), color=MUTED)
        axes.set_ylabel(drawable(f"{quantity}\nmean, 95 % interval"))
        axes.set_title(drawable(title), color=INK)
        fit(figure)
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
    with style():
        figure = new_figure(n_cols * cell + 4.0, n_rows * _ROW + 3.0)
        axes = figure.add_axes((0.1, 0.1, 0.5, 0.5), label="words")
        place(figure, axes, 2.0, 1.5, n_cols * cell, n_rows * _ROW)
        mesh = axes.pcolormesh(
            np.arange(n_cols + 1), np.arange(n_rows + 1), probabilities[:, start:], cmap=sequential(),
            norm=Normalize(0.0, 1.0), edgecolors=PAPER, linewidth=0.6,
        )  # fmt: skip
        for row, texts in enumerate(shown):
            for col, text in enumerate(texts):
                red, green, blue, _ = mesh.to_rgba(probabilities[row, start + col])
                axes.text(
                    col + 0.5, row + 0.5, text, ha="center", va="center_baseline", fontsize=6.5,
                    color=text_on((red, green, blue)),
                )  # fmt: skip
        axes.set_ylim(n_rows, 0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(n_cols) + 0.5, heads, fontsize=6.5)
        axes.xaxis.tick_top()
        axes.set_yticks(np.arange(n_rows) + 0.5, labels, fontsize=7)
        axes.tick_params(length=0, pad=3)
        axes.set_ylabel("stream after", color=MUTED)
        where = f", last {_MOST_TOKENS} tokens" if start else ""
        axes.set_title(f"Most likely next token{where}", pad=8, color=INK)
        bar = figure.add_axes((0.8, 0.1, 0.1, 0.5), label="colour bar")
        place(figure, bar, 2.0 + n_cols * cell + 0.15, 1.5, 0.12, min(1.6, n_rows * _ROW))
        colours = figure.colorbar(mesh, cax=bar)
        colours.outline.set_visible(False)
        bar.set_ylabel("probability", fontsize=7)
        bar.tick_params(length=2, width=0.6, pad=2, labelsize=6.5)
        fit(figure)
    return figure
