"""Figures of scores and tests: bars with their intervals, curves over the size, p-values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from circuitlab.drawing import shows
from circuitlab.viz.attribution import bars
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, INK, MUTED, NEGATIVE, PAPER, POSITIVE, legend_above
from circuitlab.viz.text import drawable, number

if TYPE_CHECKING:
    from circuitlab.discovery.node_scores import NodeScores
    from circuitlab.discovery.scores import EdgeScores
    from circuitlab.evaluation.curve import Areas
    from circuitlab.evaluation.hypotheses.battery import CircuitTests
    from circuitlab.evaluation.hypotheses.result import EdgeTests
    from circuitlab.evaluation.knockouts import Minimality
    from circuitlab.evaluation.truth import Recovery
    from circuitlab.runs.mib import MibCell

MOST_BARS = 24
Z = 1.96  # half of a 95 % interval, in standard errors
_ROW, _WIDTH = 0.26, 3.4
_CURVE = (4.6, 2.7)


@shows("figure", "circuitlab.discovery.scores:EdgeScores")
def edge_scores(found: EdgeScores, k: int = MOST_BARS) -> Figure:
    """Bars of the k edges with the largest absolute score, the largest at the top.

    Returns:
        The figure.
    """
    order = found.ranked()[:k]
    names = [found.layout.edge_name(*place) for place in order.tolist()]
    values, errors = found.values[tuple(order.T)], found.standard_error[tuple(order.T)]
    return _largest(names, values, errors, f"Edges by {found.method}", _quantity(found))


@shows("figure", "circuitlab.discovery.node_scores:NodeScores")
def node_scores(found: NodeScores, k: int = MOST_BARS) -> Figure:
    """Bars of the k nodes or components with the largest absolute score, the largest at the top.

    Returns:
        The figure.
    """
    frame = found.to_frame()
    frame = frame.iloc[np.argsort(-frame["score"].abs().to_numpy(), kind="stable")[:k]]
    part = next((name for name in ("component", "neuron") if name in frame), None)
    names = frame["node"] if part is None else frame["node"] + f" {part} " + frame[part].astype(str)
    values, errors = frame["score"].to_numpy(), frame["standard_error"].to_numpy()
    return _largest(names.tolist(), values, errors, f"Nodes by {found.method}", _quantity(found))


def _largest(
    names: Sequence[str],
    values: Float[np.ndarray, " bar"],
    errors: Float[np.ndarray, " bar"],
    title: str,
    quantity: str,
) -> Figure:
    """Bars with normal intervals, where there are standard errors."""
    if not (np.isfinite(errors) & (errors > 0)).any():
        return bars(names, values, title=title, quantity=quantity)
    half = Z * np.nan_to_num(errors)
    return bars(names, values, values - half, values + half, title=title, quantity=quantity)


@shows("figure", "circuitlab.evaluation.knockouts:Minimality")
def minimality(found: Minimality, k: int = MOST_BARS) -> Figure:
    """Bars of the k edges with the largest effect, the largest at the top.

    Returns:
        The figure.
    """
    rows = np.argsort(-np.abs(found.effect), kind="stable")[:k]
    return bars(
        [found.edges[row].name for row in rows], found.effect[rows], found.low[rows], found.high[rows],
        title="Effect of removing each edge", quantity="loss of faithfulness",
    )  # fmt: skip


@shows("figure", "circuitlab.evaluation.hypotheses.result:EdgeTests")
def edge_tests(found: EdgeTests, k: int = MOST_BARS) -> Figure:
    """Bars of the k edges with the largest effect, the largest at the top, with corrected p-values.

    Returns:
        The figure.
    """
    rows = np.argsort(-np.abs(found.effect), kind="stable")[:k]
    names = [f"{found.edges[row].name} ({_p(float(found.p_corrected[row]))})" for row in rows]
    title = f"Effect of removing each edge (p, {found.correction.capitalize()})"
    return bars(names, found.effect[rows], title=title, quantity="change of the metric")


@shows("figure", "circuitlab.evaluation.hypotheses.battery:CircuitTests")
def circuit_tests(found: CircuitTests) -> Figure:
    """The p-value of each test with the level 0.05: blue supports the circuit, red speaks against it.

    Returns:
        The figure.
    """
    at = np.arange(len(found.results)) + 0.5
    with canvas(_WIDTH, _ROW * len(at), "tests") as (figure, axes):
        axes.barh(at, [one.p_value for one in found.results], height=0.6, zorder=2,
                  color=[POSITIVE if one.good else NEGATIVE for one in found.results])  # fmt: skip
        axes.axvline(0.05, color=MUTED, lw=0.9, ls=(0, (4, 1.6)), zorder=3)
        for place, one in zip(at, found.results, strict=True):
            verdict = f"p: {_p(one.p_value)}, {'rejected' if one.rejected else 'not rejected'}"
            inside = one.p_value > 0.55
            axes.annotate(
                verdict, (max(one.p_value, 0.05), place), (-4 if inside else 4, 0), textcoords="offset points",
                fontsize=6.5, va="center", ha="right" if inside else "left",
                color=PAPER if inside else POSITIVE if one.good else NEGATIVE,
            )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(len(at), 0)
        axes.set_yticks(at, [one.name.replace("_", " ") for one in found.results], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("p-value; dashed: 0.05; blue: supports the circuit, red: against")
        axes.set_title(f"Hypothesis tests, {_words(found.metric)}, ablation {found.ablation}")
    return figure


@shows("figure", "circuitlab.evaluation.curve:Areas")
def areas(found: Areas) -> Figure:
    """Bars of the eight areas.

    Returns:
        The figure.
    """
    ends = {
        "": "",
        "_log": ", logarithmic",
        "_achieved": ", achieved sizes",
        "_achieved_log": ", achieved, logarithmic",
    }
    kinds = {"cpr": "CPR", "cmd": "CMD"}
    names = {f"{kind}{end}": f"{word}{words}" for kind, word in kinds.items() for end, words in ends.items()}
    values = np.array([getattr(found, name) for name in names])
    return bars(list(names.values()), values, title="Areas over the size of the circuit",
                quantity="area (CPR: more is better, CMD: less)")  # fmt: skip


@shows("figure", "circuitlab.evaluation.truth:Recovery")
def recovery(found: Recovery) -> Figure:
    """AUROC and average precision with their intervals; their chance levels are in the title.

    Returns:
        The figure.
    """
    ends = np.array([found.auroc_interval, found.average_precision_interval])
    chance = found.n_true / found.n_edges
    names = ["AUROC", "average precision"]
    return bars(
        names, np.array([found.auroc, found.average_precision]), ends[:, 0], ends[:, 1],
        title=f"Recovery of {found.n_true:,} of {found.n_edges:,} edges (chance 0.5, {chance:.2g})", quantity="share",
    )  # fmt: skip


@shows("figure", "circuitlab.runs.mib:MibCell")
def mib_cell(found: MibCell) -> Figure:
    """Faithfulness over the share of the edges, for both rankings; of the control in units of the model's gap.

    Returns:
        The figure.
    """
    frame = found.to_frame()
    lines = {"by_sign": ("signed score (CPR)", POSITIVE, "-"), "by_size": ("absolute score (CMD)", INK, "-")}
    lines |= {f"control_{name}": (f"{words.partition(' ')[0]}, untrained", MUTED, ls)
              for (name, (words, _, _)), ls in zip([*lines.items()], ("-", "--"), strict=True)}  # fmt: skip
    with canvas(*_CURVE, "curves") as (figure, axes):
        for value in (0.0, 1.0):
            axes.axhline(value, color=FAINT, lw=0.8, zorder=0)
        for name, (words, colour, ls) in lines.items():
            if name in frame:
                axes.plot(frame["share"], frame[name], color=colour, lw=1.4, ls=ls, marker="o", ms=3, label=words)
        axes.set_xscale("log")
        axes.set_xticks(frame["share"], [f"{100 * share:g} %" for share in frame["share"]], fontsize=6.5)
        axes.minorticks_off()
        axes.set_xlabel("edges before pruning (logarithmic)")
        axes.set_ylabel("faithfulness")
        legend_above(axes)
        axes.set_title(drawable(f"{found.name}, {found.method}: CPR {found.areas.cpr:.3f}, CMD {found.areas.cmd:.3f}"),
                       pad=22 + 12 * (found.control is not None))  # fmt: skip
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _quantity(found: EdgeScores | NodeScores) -> str:
    """What scores are, with the metric as their unit where they are effects on it."""
    meaning = {"size": "a size, never negative", "none": "the sign has no meaning"}
    return f"score ({meaning[found.sign]})" if found.sign in meaning else f"score [{_words(found.metric)}]"


def _p(value: float) -> str:
    return number(value, 3) if value >= 0.001 else "<0.001"
