"""How a search for prompts went: the best prompt of each search so far, step by step, with random prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from circuitlab.viz.save import fit, new_figure, place
from circuitlab.viz.style import INK, MUTED, POSITIVE, mixed, style

if TYPE_CHECKING:
    import pandas as pd

_SIZE = (4.8, 2.7)


def prompt_search_figure(trace: pd.DataFrame, baseline: float, direction: str = "max") -> Figure:
    """Lines of the best value so far.

    Args:
        trace: Columns step, search, hard (the neuron at the prompt of tokens).
        baseline: The neuron at the best of as many random prompts.
        direction: "max" or "min": what best means.

    Returns:
        The figure.
    """
    with style():
        figure = new_figure(_SIZE[0] + 2, _SIZE[1] + 2)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label="search")
        place(figure, axes, 1.0, 1.0, *_SIZE)
        by_step = trace.pivot_table(index="step", columns="search", values="hard")
        best = by_step.cummax() if direction == "max" else by_step.cummin()
        for number, search in enumerate(best.columns):
            label = "one search each" if number == 0 else None
            axes.plot(best.index, best[search], color=mixed(POSITIVE, 0.45), lw=0.9, label=label)
        whole = best.max(axis=1) if direction == "max" else best.min(axis=1)
        axes.plot(whole.index, whole, color=INK, lw=1.6, label="best of all")
        axes.axhline(baseline, color=MUTED, lw=1.0, ls=(0, (4, 1.6)), label="best of as many random prompts")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=0.6, labelsize=7)
        axes.set_xlabel("step")
        axes.set_ylabel("neuron at the last token")
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=3, frameon=False, fontsize=7, handlelength=1.6,
            columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip
        fit(figure)
    return figure
