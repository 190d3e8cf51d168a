"""Exact scores: every edge patched alone, everything after it recomputed. No approximation; cost grows with the edges.

The score is m(clean) - m(clean with this one edge corrupted); positive means that the edge helps. By position or span
only the edge's tokens there are corrupted. These scores need not sum to that of the whole edge, which is patched too:
`checks["columns_miss"]` says by how much they do not, as a share of all edges' scores in size.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348, there as the quantity that EAP estimates.
"""

from __future__ import annotations

import numpy as np

from circuitlab.discovery.exact_nodes import score_exact_nodes
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import ColumnScores, EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Layout
from circuitlab.patching.edges.edges import edge_effects, edge_grid
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
    columns = None if axis == "all" else _by_column(experiment, axis)
    running = RunningMean(real_edges(Layout.of(experiment.model.spec)))
    for number, baseline in enumerate(experiment.baselines):
        resources = experiment.resources.part(number, len(experiment.batches))
        running.add(edge_effects(
            experiment.model, baseline, experiment.metric, replacement=experiment.replacement, resources=resources
        ))  # fmt: skip
    checks = {"largest_standard_error": float(running.standard_error.max())}
    if columns is not None:
        missed = np.abs(columns.scores.sum(0) - running.mean).sum()
        checks["columns_miss"] = float(missed / max(1e-12, np.abs(running.mean).sum()))
    return EdgeScores(
        spec=experiment.model.spec,
        values=running.mean,
        standard_error=running.standard_error,
        method="exact",
        metric=experiment.metric.name,
        n_examples=experiment.n_examples,
        checks=checks,
        by_column=columns,
    )


def _by_column(experiment: Experiment, axis: str) -> ColumnScores:
    """The same of each column's tokens alone; the sign of a metric where less is better is for the caller to turn."""
    found = edge_grid(experiment, None, axis=axis)
    means = np.nan_to_num(found.per_example).mean(2) * (1 if experiment.metric.higher_is_better else -1)
    layout = Layout.of(experiment.model.spec)
    rows, columns = edge_places(layout).T
    scores = np.zeros((len(found.columns), len(layout.writers), len(layout.readers)))
    scores[:, rows, columns] = means.T
    return ColumnScores(kind=found.column_kind, labels=found.columns, scores=scores, numbers=found.numbers)
