"""Exact scores: every edge patched alone, everything after it recomputed. No approximation; cost grows with the edges.

The score is m(clean) - m(clean with this one edge corrupted); positive means that the edge helps. By position or span
only the edge's tokens there are corrupted. These scores need not sum to that of the whole edge, which is patched too:
`checks["columns_miss"]` says by how much they do not, as a share of all edges' scores in size.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348, there as the quantity that EAP estimates.
"""

from __future__ import annotations

import numpy as np

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import ColumnScores, EdgeScores, RunningMean
from circuitlab.graphs.ranking import edge_places
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import record_baseline
from circuitlab.patching.edge_plan import parts_that_fit
from circuitlab.patching.edges import edge_effects, patch_edges
from circuitlab.progress import Progress


def score_exact(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    axis: str = "all",
    budget: int | None = None,
    progress: Progress,
) -> EdgeScores:
    """Patch every edge alone; see the module. The error measure is the standard error over examples.

    Args:
        model: A loaded model.
        pairs: What is scored.
        metric: What is measured.
        axis: "all", "position" or "span".
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
    """
    columns = None if axis == "all" else _by_column(model, pairs, metric, axis, budget, progress)
    running = RunningMean(Layout.of(model.spec))
    batches = parts_that_fit(model, pairs, budget, n_writers=len(running.layout.writers))

    for number, batch in enumerate(batches):

        def part(step: str, done: int, total: int, number: int = number) -> None:
            progress(step, number * total + done, len(batches) * total)

        effects = edge_effects(model, record_baseline(model, batch), metric, budget=budget, progress=part)
        running.add(effects)
    checks = {"largest_standard_error": float(running.standard_error.max())}
    if columns is not None:
        missed = np.abs(columns.scores.sum(0) - running.mean).sum()
        checks["columns_miss"] = float(missed / max(1e-12, np.abs(running.mean).sum()))
    return EdgeScores(
        spec=model.spec,
        values=running.mean,
        standard_error=running.standard_error,
        method="exact",
        metric=metric.name,
        n_examples=sum(map(len, batches)),
        checks=checks,
        by_column=columns,
    )


def _by_column(
    model: Model, pairs: PairSet | PairBatch, metric: Metric, axis: str, budget: int | None, progress: Progress
) -> ColumnScores:
    """The same of each column's tokens alone; the sign of a metric where less is better is for the caller to turn."""
    found = patch_edges(model, pairs, metric=metric, axis=axis, budget=budget, progress=progress)
    means = np.nan_to_num(found.per_example).mean(2) * (1 if metric.higher_is_better else -1)
    layout = Layout.of(model.spec)
    rows, columns = edge_places(layout).T
    scores = np.zeros((len(found.columns), len(layout.writers), len(layout.readers)))
    scores[:, rows, columns] = means.T
    return ColumnScores(kind=found.column_kind, labels=found.columns, scores=scores)
