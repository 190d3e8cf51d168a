"""Figures of what neurons do: outlier scores, searches for prompts, texts that become shorter, shares of a logit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from circuitlab.drawing import shows
from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, INK, MUTED, POSITIVE, legend_above, mixed, sign_colour
from circuitlab.viz.text import clipped, drawable, number, visible_token

if TYPE_CHECKING:
    from circuitlab.neurons.direct_effects import Importance
    from circuitlab.neurons.outlier_scores import Outliers
    from circuitlab.neurons.prompt_results import OptimisedPrompts
    from circuitlab.neurons.simplification import Simplification

_SCATTER, _SEARCH = (4.6, 3.0), (4.8, 2.7)
_LINE = 0.155  # of the list beside a scatter
_STEP, _BAR, _LONGEST = 0.19, 1.7, 90


@shows("figure", "circuitlab.neurons.direct_effects:Importance")
def importance(found: Importance, k: int = 10) -> Figure:
    """The first k neurons by prompt, and their average; the most important neuron at the top."""
    chosen = found.top(k)
    return heatmap(
        LabelledGrid(
            values=np.column_stack([found.shares[chosen], found.average[chosen]]),
            row_labels=tuple(f"{found.layers[i]}.{found.neurons[i]}" for i in chosen),
            col_labels=(*found.answers, "average"),
            row_title="neuron",
            col_title="predicted token",
            title="Direct effect of neurons on the prediction",
            quantity="share of all neurons",
        )
    )


@shows("figure", "circuitlab.neurons.outlier_scores:Outliers")
def outliers(found: Outliers, n_top: int = 10) -> Figure:
    """Ablation loss against outlier score, one dot a position; the highest combinations are numbered and listed."""
    positions = found.to_frame()
    top, rest = positions.iloc[:n_top], positions.iloc[n_top:]
    with canvas(*_SCATTER, "outliers") as (figure, axes):
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        axes.scatter(rest["outlier_score"], rest["ablation_loss"], s=9, color=MUTED, alpha=0.55, lw=0)
        axes.scatter(top["outlier_score"], top["ablation_loss"], s=16, color=POSITIVE, lw=0, zorder=3)
        axes.set_xlabel("outlier score: largest neuron minus mean over neurons")
        axes.set_ylabel("ablation loss [nats]")
        axes.text(1.03, 1.0, "highest combination", transform=axes.transAxes, fontsize=7, color=MUTED, va="top")
        for rank, row in enumerate(top.to_dict("records"), start=1):
            at = (row["outlier_score"], row["ablation_loss"])
            axes.annotate(str(rank), at, (3.5, 1.5), textcoords="offset points", fontsize=6, color=INK)
            token = visible_token(str(row["token"]), 16)
            line = f"{rank}.  {token}   prompt {row['prompt']}, position {row['position']}"
            y = 1.0 - (rank + 0.3) * _LINE / _SCATTER[1]
            axes.text(1.03, y, drawable(line), transform=axes.transAxes, fontsize=7, color=INK, va="top")
    return figure


@shows("figure", "circuitlab.neurons.prompt_results:OptimisedPrompts")
def optimised_prompts(found: OptimisedPrompts) -> Figure:
    """The best prompt so far of each search against the step, with the best of as many random prompts."""
    best = (np.maximum if found.direction == "max" else np.minimum).accumulate(found.hard)
    steps = np.arange(len(best))
    with canvas(*_SEARCH, "search") as (figure, axes):
        lines = axes.plot(steps, best, color=mixed(POSITIVE, 0.45), lw=0.9)
        lines[0].set_label("one search each")
        whole = best.max(1) if found.direction == "max" else best.min(1)
        axes.plot(steps, whole, color=INK, lw=1.6, label="best of all")
        random = float(found.baseline.best[0])
        axes.axhline(random, color=MUTED, lw=1.0, ls=(0, (4, 1.6)), label="best of as many random prompts")
        axes.set_xlabel("step")
        axes.set_ylabel("neuron at the last token")
        legend_above(axes)
    return figure


@shows("figure", "circuitlab.neurons.simplification:Simplification")
def simplification(found: Simplification) -> Figure:
    """One line a step: the text, and a bar for the activation at its last token."""
    texts = [drawable(clipped(visible_token(step.tokens.text), _LONGEST)) for step in found.steps]
    values, places = [step.activation for step in found.steps], range(len(texts))
    with canvas(_BAR, len(texts) * _STEP, "steps") as (figure, axes):
        axes.barh(list(places), values, height=0.62, color=[sign_colour(value) for value in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_yticks(list(places), texts, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.axvline(values[0], color=MUTED, lw=0.7, ls=(0, (2, 2)))
        axes.spines["left"].set_visible(False)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                number(value, 2), (max(value, 0.0), place), (3, 0), textcoords="offset points", fontsize=6.5,
                color=INK, va="center",
            )  # fmt: skip
        axes.set_xlabel("neuron at the last token")
    return figure
