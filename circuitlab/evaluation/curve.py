"""Faithfulness by size: the top edges at MIB's ten sizes, the smallest circuit that suffices, and areas over the size.

CPR and CMD are areas over the size of a circuit, as MIB computes them, and on sizes and axes that show small circuits.
MIB's are over the **nominal** size (the requested number of edges) on a **linear** axis without a point at 0: a perfect
curve has CPR 0.999 and CMD 0, and half of the area lies above half of the edges. There are three more of each:

- over the nominal size on a **logarithmic** axis, from 0.1 % to all edges, divided by the width of that axis: a perfect
  curve has CPR 1 and CMD 0, and each tenfold growth counts the same (times ln 1000 it is MIB's `log_scale` area);
- over the **achieved** size (edges after pruning, what really ran) on a linear axis from no edge, where faithfulness
  is 0 by definition, to all;
- over the achieved size on a logarithmic axis from one edge to all, 0 at one edge unless that circuit was run.

Pruning only takes away, so a curve over achieved sizes lies to the left of the one over nominal sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isnan, log, nan

import numpy as np
from jaxtyping import Bool

from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.ranking import mask_of, ranked_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.result import Result

# MIB evaluates these shares of the edges; the number of edges is cut to a whole number.
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One size on the faithfulness curve.

    Attributes:
        n_edges: Edges after pruning: what really ran.
        n_edges_nominal: Edges before pruning.
        faithfulness: Ratio of means.
    """

    n_edges: int
    n_edges_nominal: int
    faithfulness: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Areas(Result):
    """Four areas of two kinds; see the module. Every `cpr` is better the larger, every `cmd` the smaller.

    Attributes:
        cpr: MIB's circuit performance ratio: nominal sizes, linear axis, edges ranked by signed score.
        cmd: MIB's circuit-model distance: the same, edges ranked by absolute score.
        cpr_log: CPR on the logarithmic axis.
        cmd_log: CMD on the logarithmic axis.
        cpr_achieved: CPR over achieved sizes.
        cmd_achieved: CMD over achieved sizes.
        cpr_achieved_log: CPR over achieved sizes on the logarithmic axis.
        cmd_achieved_log: CMD over achieved sizes on the logarithmic axis.
    """

    cpr: float = nan
    cmd: float = nan
    cpr_log: float = nan
    cmd_log: float = nan
    cpr_achieved: float = nan
    cmd_achieved: float = nan
    cpr_achieved_log: float = nan
    cmd_achieved_log: float = nan

    @classmethod
    def of(cls, by_sign: Sequence[CurvePoint], by_size: Sequence[CurvePoint], n_edges_total: int) -> Areas:
        """All areas of two curves at MIB's sizes.

        Args:
            by_sign: The curve of edges ranked by signed score.
            by_size: The curve of edges ranked by absolute score.
            n_edges_total: Number of edges of the graph.

        Returns:
            The areas; all NaN without a curve.
        """
        if not by_sign or not by_size:
            return cls()
        signed, absolute = ([point.faithfulness for point in curve] for curve in (by_sign, by_size))
        areas: dict[str, float] = {}
        for end, axis in (("", False), ("_log", True)):
            areas |= {f"cpr{end}": cpr(signed, logarithmic=axis), f"cmd{end}": cmd(absolute, logarithmic=axis)}
            areas[f"cpr_achieved{end}"] = cpr_achieved(by_sign, n_edges_total, logarithmic=axis)
            areas[f"cmd_achieved{end}"] = cmd_achieved(by_size, n_edges_total, logarithmic=axis)
        return cls(**areas)

    def _summary(self) -> str:
        return f"CPR {self.cpr:.3f}, CMD {self.cmd:.3f}"

    def to_record(self) -> dict[str, float | None]:
        """The areas by name; null instead of NaN.

        Returns:
            The record.
        """
        return {name: None if isnan(value) else value for name, value in asdict(self).items()}


def mib_sizes(n_edges_total: int) -> tuple[int, ...]:
    """Nominal numbers of edges at MIB's shares.

    Returns:
        One number for each of `MIB_SHARES`.
    """
    return tuple(int(share * n_edges_total) for share in MIB_SHARES)


def cpr(faithfulness: Sequence[float], *, logarithmic: bool = False) -> float:
    """Circuit performance ratio: area under the faithfulness of circuits ranked by signed score.

    Args:
        faithfulness: One value per share of `MIB_SHARES`.
        logarithmic: On the logarithmic axis, divided by its width; else as MIB.

    Returns:
        The area, 0.999 or 1 for a perfect curve.

    Raises:
        ValueError: There is not one value per share.

    References:
        Mueller et al. 2025 (MIB), section 3.1, arXiv:2504.13151.
    """
    return _nominal(faithfulness, logarithmic)


def cmd(faithfulness: Sequence[float], *, logarithmic: bool = False) -> float:
    """Circuit-model distance: area between the faithfulness of circuits ranked by absolute score and 1.

    Args:
        faithfulness: One value per share of `MIB_SHARES`.
        logarithmic: On the logarithmic axis, divided by its width; else as MIB.

    Returns:
        The area, 0 for a perfect curve.

    Raises:
        ValueError: There is not one value per share.

    References:
        Mueller et al. 2025 (MIB), section 3.1, arXiv:2504.13151.
    """
    return _nominal([abs(1 - value) for value in faithfulness], logarithmic)


def cpr_achieved(points: Sequence[CurvePoint], n_edges_total: int, *, logarithmic: bool = False) -> float:
    """CPR over the sizes of circuits after pruning.

    Returns:
        The area; for a perfect curve 1 minus half its first size.
    """
    return _achieved([(point.n_edges, point.faithfulness) for point in points], 0.0, n_edges_total, logarithmic)


def cmd_achieved(points: Sequence[CurvePoint], n_edges_total: int, *, logarithmic: bool = False) -> float:
    """CMD over the sizes of circuits after pruning.

    Returns:
        The area; for a perfect curve half its first size.
    """
    values = [(point.n_edges, abs(1 - point.faithfulness)) for point in points]
    return _achieved(values, 1.0, n_edges_total, logarithmic)


def _nominal(values: Sequence[float], logarithmic: bool) -> float:
    if len(values) != len(MIB_SHARES):
        raise ValueError(f"an area needs {len(MIB_SHARES)} values, one for each of MIB's shares; got {len(values)}.")
    if not logarithmic:
        return _area(MIB_SHARES, values)
    places = [log(share) for share in MIB_SHARES]
    return _area(places, values) / (places[-1] - places[0])


def _achieved(points: Sequence[tuple[int, float]], empty: float, total: int, logarithmic: bool) -> float:
    """Area from the empty circuit, whose value is `empty`, to the whole graph; both axes run from 0 to 1."""
    if not logarithmic:
        return _area([0.0, *(size / total for size, _ in points)], [empty, *(value for _, value in points)])
    if total < 2:
        return nan
    run = [(log(size) / log(total), value) for size, value in points if size > 0]
    start = [] if run and run[0][0] == 0 else [(0.0, empty)]
    places, values = zip(*start, *run, strict=True)
    return _area(places, values)


def _area(places: Sequence[float], values: Sequence[float]) -> float:
    """The trapezoidal rule."""
    return sum((b - a) * (x + y) / 2 for (a, b), (x, y) in zip(pairwise(places), pairwise(values), strict=True))


SUFFICES = 0.9
# Number of sizes to run between the last of MIB's that does not suffice and the first that does.
TRIED = 12
# The whole graph of a float32 model has come out up to 1e-5 above 1.
SLACK = 1e-4

Curve = tuple[CurvePoint, ...]


def curves(experiment: Experiment, circuit: Circuit) -> tuple[Curve, Curve]:
    """Faithfulness at MIB's sizes, edges ranked by absolute and by signed score.

    An edge without a score (NaN) ranks first, as in EAP-IG: edges that were not scored are kept. A circuit has no
    scores if those of its graph are all 0 or NaN.

    Returns:
        Both curves; empty without scores.
    """
    given = circuit.scores[real_edges(circuit.layout)]
    if not given[np.isfinite(given)].any():
        return (), ()
    sizes = mib_sizes(circuit.layout.n_edges)
    masks = np.concatenate([_top(circuit, sizes, signed=signed) for signed in (False, True)])
    points = _points(experiment, masks, [*sizes, *sizes], "curve")
    return points[: len(MIB_SHARES)], points[len(MIB_SHARES) :]


def smallest_sufficient(experiment: Experiment, circuit: Circuit, curve: Curve) -> CurvePoint | None:
    """The smallest circuit of top edges by absolute score with a faithfulness of at least 0.9, of those that were run.

    Between MIB's first size that suffices and the one before, up to 12 more are run, evenly on a logarithmic axis.
    Faithfulness is not monotonic in size, so a smaller one between two that were run may suffice too.

    Returns:
        The point; None where no circuit suffices.
    """
    before = [0, *(point.n_edges_nominal for point in curve)]
    for low, point in zip(before, curve, strict=False):
        if point.faithfulness >= SUFFICES:
            steps = np.geomspace(max(1, low), max(1, point.n_edges_nominal), TRIED + 2)[1:-1]
            sizes = sorted({int(n) for n in steps} - {low, point.n_edges_nominal} - {0})
            if not sizes:
                return point
            tried = _points(experiment, _top(circuit, sizes, signed=False), sizes, "smallest")
            return next((one for one in tried if one.faithfulness >= SUFFICES), point)
    return None


def highest(curve: Curve) -> CurvePoint | None:
    """The point with the highest faithfulness.

    Returns:
        The smallest of equal points; None without a curve.
    """
    return max(curve, key=lambda point: point.faithfulness, default=None)


def overshoots(curve: Curve) -> bool:
    """Whether a circuit exceeds the whole model (f > 1): edges that work against the answer are missing.

    Returns:
        True if a circuit does.
    """
    return any(point.faithfulness > 1 + SLACK for point in curve)


def _points(
    experiment: Experiment, masks: Bool[np.ndarray, "size writer reader"], nominal: Sequence[int], step: str
) -> Curve:
    found = experiment.faithfulness(masks, step)
    return tuple(
        CurvePoint(int(mask.sum()), size, float(value)) for mask, size, value in zip(masks, nominal, found, strict=True)
    )


def _top(circuit: Circuit, sizes: Sequence[int], *, signed: bool) -> Bool[np.ndarray, "size writer reader"]:
    """Top edges at each size, pruned; edges that a search did not test come last, by their second score."""
    keys, second = circuit.scores, circuit.second_scores
    if not signed:
        keys, second = np.abs(keys), None if second is None else np.abs(second)
    order = ranked_edges(np.where(np.isnan(keys), np.inf, keys), circuit.layout, second)
    return np.stack([prune(mask_of(order[:size], circuit.layout), circuit.layout) for size in sizes])
