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
from circuitlab.discovery.exact_nodes import score_exact_nodes
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import ColumnScores, EdgeScores, RunningMean
from circuitlab.graphs.ranking import edge_places
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.edges.edges import edge_effects, patch_edges
from circuitlab.patching.edges.plan import parts_that_fit
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.replacement import Replacement, resolve_replacement
from circuitlab.progress import Progress


def score_exact(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    ablation: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    axis: str = "all",
    level: str = "edge",
    budget: int | None = None,
    progress: Progress,
) -> EdgeScores | NodeScores:
    """Patch every edge alone; see the module. The error measure is the standard error over examples.

    Args:
        model: A loaded model.
        pairs: What is scored.
        metric: What is measured.
        ablation: What a corrupted edge carries.
        reference: Prompts that means are taken of.
        seed: Of noise.
        axis: "all", "position" or "span".
        level: "edge", or one of `LEVELS` for `exact_nodes`.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).

    Raises:
        ConfigError: The ablation does not go with these pairs; no such columns.
        MetricError: The metric gives the wrong shape or NaN.
    """
    put_in = resolve_replacement(model, ablation, pairs=pairs, reference=reference, seed=seed, budget=budget)
    if level != "edge":
        return score_exact_nodes(model, pairs, metric, level=level, put_in=put_in, budget=budget, progress=progress)
    columns = None if axis == "all" else _by_column(model, pairs, metric, put_in, axis, budget, progress)
    layout = Layout.of(model.spec)
    running = RunningMean(layout)
    batches = parts_that_fit(model, pairs, budget, n_writers=len(layout.writers))

    for number, batch in enumerate(batches):

        def part(step: str, done: int, total: int, number: int = number) -> None:
            progress(step, number * total + done, len(batches) * total)

        effects = edge_effects(
            model, record_baseline(model, batch), metric, replacement=put_in, budget=budget, progress=part
        )
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
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    put_in: Replacement,
    axis: str,
    budget: int | None,
    progress: Progress,
) -> ColumnScores:
    """The same of each column's tokens alone; the sign of a metric where less is better is for the caller to turn."""
    found = patch_edges(model, pairs, metric=metric, ablation=put_in, axis=axis, budget=budget, progress=progress)
    means = np.nan_to_num(found.per_example).mean(2) * (1 if metric.higher_is_better else -1)
    layout = Layout.of(model.spec)
    rows, columns = edge_places(layout).T
    scores = np.zeros((len(found.columns), len(layout.writers), len(layout.readers)))
    scores[:, rows, columns] = means.T
    return ColumnScores(kind=found.column_kind, labels=found.columns, scores=scores, numbers=found.numbers)
