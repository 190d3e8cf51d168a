"""EAP: edge attribution patching, from one gradient.

    score(u -> v) = sum over positions and dimensions of (a_u - a'_u) . dm/dx_v, the gradient taken in the clean run

A run of each prompt, one backward pass, one product. Positive: corrupting the edge would lower the metric, to first
order. TransformerLens takes the gradient in the corrupted run instead (`attribution_patch`). It is the cheapest score
and the crudest: where the metric bends between the two runs, EAP-IG is closer to the exact effect.

References:
    Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.eap_ig import score_eap_ig
from circuitlab.discovery.scores import EdgeScores
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.progress import Progress


def score_eap(
    model: Model, pairs: PairSet | PairBatch, metric: Metric, *, budget: int | None = None, progress: Progress
) -> EdgeScores:
    """Estimate every edge's effect from the gradient in the clean run: EAP-IG with one step, whose end that run is.

    Returns:
        Scores whose `checks["completeness_gap"]` says how far a straight line misses the true difference of the metric.

    Raises:
        MetricError: The metric has no gradient, or none in the clean run (`kl`).
    """
    return score_eap_ig(model, pairs, metric, steps=1, name="eap", budget=budget, progress=progress)
