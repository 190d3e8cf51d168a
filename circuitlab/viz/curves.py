"""Faithfulness against the number of edges, with the circuit that was kept and random ones of its size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from circuitlab.errors import FormatError
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, INK, MUTED, PAPER, POSITIVE, legend_above
from circuitlab.viz.text import MINUS

_SIZE = (5.2, 2.7)
# The axis reaches as far as the values do, but not beyond these; random circuits, which can be far out, widen it less.
_LIMITS = (-1.0, 2.0)
_RANDOM_LIMITS = (-0.5, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessCurve:
    """What the figure shows. Faithfulness: 0 = as the empty circuit, 1 = as the whole model.

    Attributes:
        points: Number of edges and faithfulness of circuits of growing size, at least one edge each.
        circuit: Number of edges and faithfulness of the circuit that was kept.
        interval: Its interval, or None.
        random: Faithfulness of random circuits of the same size.
        n_edges_total: Edges of the whole graph, or None.
        zero: What has faithfulness 0.
    """

    points: tuple[tuple[int, float], ...]
    circuit: tuple[int, float]
    interval: tuple[float, float] | None = None
    random: tuple[float, ...] = ()
    n_edges_total: int | None = None
    zero: str = "corrupted run"

    @classmethod
    def of(cls, evaluation: Mapping[str, Any]) -> FaithfulnessCurve:
        """The curve out of what `evaluation.json` holds. Points without an edge or without a number are left out.

        Returns:
            The curve.

        Raises:
            FormatError: A field is missing or is not what it should be; the message names it.
        """
        try:
            points = [
                (int(point["n_edges"]), _number(point["faithfulness"])) for point in evaluation.get("curve") or ()
            ]
            circuit = (int(evaluation["n_edges"]), _number(evaluation["faithfulness"]))
            interval = evaluation.get("faithfulness_ci")
            ends = (_number(interval[0]), _number(interval[1])) if interval else None
            random = (evaluation.get("random_baseline") or {}).get("faithfulness") or ()
            total = evaluation.get("n_edges_total")
            corrupted = evaluation.get("ablation") in (None, "corrupt")
            return cls(
                points=tuple(sorted(p for p in points if p[0] > 0 and math.isfinite(p[1]))),
                circuit=circuit,
                interval=ends if ends and all(map(math.isfinite, ends)) else None,
                random=tuple(value for value in map(_number, random) if math.isfinite(value)),
                n_edges_total=int(total) if total else None,
                zero="corrupted run" if corrupted else "every edge ablated",
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise FormatError(
                f"evaluation: {type(error).__name__} {error}. Needed are n_edges and faithfulness (numbers), and where "
                "present faithfulness_ci [low, high], curve [{n_edges, faithfulness}], "
                "random_baseline {faithfulness: [...]}."
            ) from error


def faithfulness_figure(curve: FaithfulnessCurve, *, title: str = "") -> Figure:
    """Draw the curve over a logarithmic number of edges.

    Args:
        curve: What to show.
        title: Over the figure.

    Returns:
        A figure of its own size; save it with `save_figure`.
    """
    with canvas(*_SIZE, "curve") as (figure, axes):
        limits = _limits(curve)
        _frame(axes, curve, limits)
        if curve.points:
            axes.plot(
                *zip(*curve.points, strict=True), color=POSITIVE, lw=1.4, marker="o", ms=3, label="top edges by score"
            )
        if curve.random:
            label = f"{len(curve.random)} random circuits of this size"
            _marks(axes, [curve.circuit[0]] * len(curve.random), curve.random, limits, label)
        _draw_circuit_point(axes, curve)
        legend_above(axes)
        if title:
            axes.set_title(title, pad=22)
    return figure


def _number(value: object) -> float:
    """A number from JSON; null is NaN."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _limits(curve: FaithfulnessCurve) -> tuple[float, float]:
    near = [value for value in curve.random if _RANDOM_LIMITS[0] < value < _RANDOM_LIMITS[1]]
    values = [*(p[1] for p in curve.points), curve.circuit[1], *(curve.interval or ()), *near]
    values = [value for value in values if math.isfinite(value)]
    low, high = min([-0.1, *values]) - 0.08, max([1.1, *values]) + 0.04
    if len(near) < len(curve.random):
        low = min(low, _RANDOM_LIMITS[0]) if min(curve.random) <= _RANDOM_LIMITS[0] else low
        high = max(high, _RANDOM_LIMITS[1]) if max(curve.random) >= _RANDOM_LIMITS[1] else high
    return max(_LIMITS[0], low), min(_LIMITS[1], high)


def _frame(axes: Axes, curve: FaithfulnessCurve, limits: tuple[float, float]) -> None:
    sizes = [p[0] for p in curve.points] + [max(1, curve.circuit[0]), curve.n_edges_total or 1]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.25)
    axes.set_ylim(*limits)
    ticks = [base * 10**power for power in range(8) for base in (1, 2, 5)]
    ticks = [tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    for value in (0.0, 1.0):
        axes.axhline(value, color=FAINT, lw=0.8, zorder=0)
    for value, word in ((1.0, "whole model"), (0.0, curve.zero)):
        axes.annotate(
            word, (1, value), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=6.5,
            color=MUTED, va="center",
        )  # fmt: skip
    total = f" (of {curve.n_edges_total:,}, logarithmic)" if curve.n_edges_total else " (logarithmic)"
    axes.set_xlabel("edges kept" + total)
    axes.set_ylabel("faithfulness, held-out prompts")


def _marks(axes: Axes, x: Sequence[int], y: Sequence[float], limits: tuple[float, float], label: str) -> None:
    """A strip of short lines; what is out of range becomes a triangle at the border."""
    inside = [value for value in y if limits[0] <= value <= limits[1]]
    axes.plot(x[: len(inside)], inside, ls="", marker="_", ms=11, mew=0.9, color=MUTED, alpha=0.75, label=label)
    below, above = [v for v in y if v < limits[0]], [v for v in y if v > limits[1]]
    for marker, border, beyond, word in (("v", limits[0], below, "below"), ("^", limits[1], above, "above")):
        if beyond:
            axes.plot(x[:1], [border], ls="", marker=marker, ms=5, color=MUTED, clip_on=False)
            text = f"{len(beyond)} {word} {border:.1f}".replace("-", MINUS)
            place_at = (6, 4) if word == "below" else (6, -4)
            axes.annotate(
                text, (x[0], border), place_at, textcoords="offset points", fontsize=6.5, color=MUTED, va="center"
            )


def _draw_circuit_point(axes: Axes, curve: FaithfulnessCurve) -> None:
    x, y = curve.circuit
    label = f"the circuit: {x:,} edges, {y:.2f}".replace("-", MINUS)
    if curve.interval:
        label += ", 95 % interval"
        axes.plot([x, x], curve.interval, color=INK, lw=1.4, zorder=4, solid_capstyle="butt")
    axes.plot([x], [y], ls="", marker="D", ms=5.5, color=INK, mec=PAPER, mew=0.8, zorder=5, label=label)
