"""Exact scores: every edge patched alone, everything after it recomputed. No approximation; cost grows with the edges.

The score is m(clean) - m(clean with this one edge corrupted); positive means that the edge helps.

References:
    Edge patching as in Syed et al. 2023, arXiv:2310.10348, there as the quantity that EAP estimates.
"""

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores, RunningMean
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import record_baseline
from circuitlab.patching.edge_plan import parts_that_fit
from circuitlab.patching.edges import edge_effects
from circuitlab.progress import Progress


def score_exact(
    model: Model, pairs: PairSet | PairBatch, metric: Metric, *, budget: int | None = None, progress: Progress
) -> EdgeScores:
    """Patch every edge alone; see the module. The error measure is the standard error over examples."""
    running = RunningMean(Layout.of(model.spec))
    batches = parts_that_fit(model, pairs, budget, n_writers=len(running.layout.writers))

    for number, batch in enumerate(batches):

        def part(step: str, done: int, total: int, number: int = number) -> None:
            progress(step, number * total + done, len(batches) * total)

        effects = edge_effects(model, record_baseline(model, batch), metric, budget=budget, progress=part)
        running.add(effects)
    return EdgeScores(
        spec=model.spec,
        values=running.mean,
        standard_error=running.standard_error,
        method="exact",
        metric=metric.name,
        n_examples=sum(map(len, batches)),
        checks={"largest_standard_error": float(running.standard_error.max())},
    )
