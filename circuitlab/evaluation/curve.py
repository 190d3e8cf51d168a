"""Faithfulness by size: the top edges at MIB's ten sizes, and the smallest circuit that suffices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from circuitlab.evaluation.areas import MIB_SHARES, CurvePoint, mib_sizes
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.ranking import mask_of, ranked_edges
from circuitlab.patching.experiment import Experiment

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
