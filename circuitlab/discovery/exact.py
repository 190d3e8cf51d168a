"""Exact scores: every edge patched alone, everything after it recomputed. No approximation; cost grows with the edges.

The score is m(clean) - m(clean with this one edge corrupted); positive means that the edge helps. By position or span
only the edge's tokens there are corrupted. These scores need not sum to that of the whole edge, which is patched too:
`checks["columns_miss"]` says by how much they do not, as a share of all edges' scores in size.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348, there as the quantity that EAP estimates.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange
from jaxtyping import Float

from circuitlab.discovery.exact_nodes import score_exact_nodes
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import ColumnScores, EdgeScores
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Layout
from circuitlab.patching.edges.edges import run_edges
from circuitlab.patching.edges.effects import EdgeEffects
from circuitlab.patching.edges.plan import plan_edges
from circuitlab.patching.experiment import Experiment
from circuitlab.stats import RunningMean


def score_exact(experiment: Experiment, *, axis: str = "all", level: str = "edge") -> EdgeScores | NodeScores:
    """Patch every edge alone; see the module. The error measure is the standard error over examples.

    Args:
        experiment: What is scored.
        axis: "all", "position" or "span".
        level: "edge", or one of `LEVELS` for `exact_nodes`.

    Raises:
        ConfigError: The ablation does not go with these pairs; no such columns.
        MetricError: The metric gives the wrong shape or NaN.
    """
    if level != "edge":
        return score_exact_nodes(experiment, level)
    layout, running, columns = Layout.of(experiment.model.spec), RunningMean(), None
    running.add(_effects(experiment, "all")[1][:, :, 0])
    mean, error = (_matrix(layout, values) for values in (running.mean, running.standard_error))
    checks = {"largest_standard_error": float(error.max())}
    if axis != "all":
        found, effects = _effects(experiment, axis)
        scores = _matrix(layout, np.nan_to_num(effects).mean(0).T)
        columns = ColumnScores(kind=found.column_kind, labels=found.columns, scores=scores, numbers=found.numbers)
        missed = np.abs(scores.sum(0) - mean).sum()
        checks["columns_miss"] = float(missed / max(1e-12, np.abs(mean).sum()))
    return EdgeScores(
        spec=experiment.model.spec,
        values=mean,
        standard_error=error,
        method="exact",
        metric=experiment.metric.name,
        n_examples=experiment.n_examples,
        checks=checks,
        by_column=columns,
    )


def _effects(experiment: Experiment, axis: str) -> tuple[EdgeEffects, Float[np.ndarray, "example edge column"]]:
    """Effects of all edges; the sign of a metric where less is better is for the caller to turn."""
    found = run_edges(experiment, plan_edges(experiment, axis=axis, direction="noise"))
    signed = found.per_example if experiment.metric.higher_is_better else -found.per_example
    return found, rearrange(signed, "edge column example -> example edge column")


def _matrix(layout: Layout, values: Float[np.ndarray, "*column edge"]) -> Float[np.ndarray, "*column writer reader"]:
    """Values of all edges as matrices, 0 where there is no edge."""
    matrix = np.zeros((*values.shape[:-1], len(layout.writers), len(layout.readers)))
    matrix[..., *edge_places(layout).T] = values
    return matrix
