"""Exact scores of nodes and neurons: each patched alone in the clean run, everything behind it recomputed.

The score is m(clean) - m(clean with it corrupted); positive means that it helps. Nodes and neurons of MLPs are those of
the sweeps: a norm behind them follows. Components of the stream are patched there, behind any norm.

References:
    Vig et al. 2020, arXiv:2004.12265; Mueller et al. 2025 (MIB), arXiv:2504.13151, for the levels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import RunningMean
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.edges.components import component_effects
from circuitlab.patching.edges.plan import parts_that_fit
from circuitlab.patching.grid import Grid
from circuitlab.patching.runs.baseline import record_baseline
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.patching.sweeps.sweep import sweep
from circuitlab.progress import Progress


def score_exact_nodes(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    level: str,
    put_in: Replacement,
    budget: int | None = None,
    progress: Progress,
) -> NodeScores:
    """Patch every node, component or neuron alone; see the module. The error measure is the largest standard error.

    Args:
        model: A loaded model.
        pairs: What is scored.
        metric: What is measured.
        level: A name of `LEVELS`.
        put_in: What is put in the place of a value, resolved for these pairs.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).

    Raises:
        UnknownNameError: Neurons of MLPs in a model without.
        MetricError: The metric gives the wrong shape or NaN, or does not tell the two runs apart.
    """
    running = RunningMean()
    if level == "neuron":
        for batch in parts_that_fit(model, pairs, budget, n_writers=len(Layout.of(model.spec).writers)):
            running.add(component_effects(
                model, record_baseline(model, batch), metric, put_in, budget=budget, progress=progress
            ))  # fmt: skip
    else:
        patched = _patched(model, pairs, metric, level, put_in, budget, progress)
        running.add(np.moveaxis(patched, -1, 0))
    return NodeScores(
        spec=model.spec,
        level=level,
        values=running.mean,
        standard_error=running.standard_error,
        method="exact",
        metric=metric.name,
        n_examples=running.n,
        checks={"largest_standard_error": float(running.standard_error.max())},
    )


def _patched(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    level: str,
    put_in: Replacement,
    budget: int | None,
    progress: Progress,
) -> Float[np.ndarray, "... example"]:
    """How much the metric falls, from the sweeps."""

    def fall(site: str, layers: list[int] | None = None) -> np.ndarray:
        grid = sweep(
            model, pairs, site=site, direction="noise", replacement=put_in, metric=metric, axis="all", layers=layers,
            budget=budget, progress=progress,
        )  # fmt: skip
        assert isinstance(grid, Grid)
        return grid.clean - grid.per_example

    if level == "mlp-neuron":
        return fall("neuron")
    heads = fall("head_z")  # [layer, head, example]
    parts = np.concatenate([heads, fall("mlp_out")], 1) if model.spec.has_mlp else heads
    return np.concatenate([fall("resid_pre", [0])[0], parts.reshape(-1, parts.shape[-1])])
