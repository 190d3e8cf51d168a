"""EAP: edge attribution patching, from one gradient.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . dm/dx_v, the gradient taken in the clean run

r_u is what a corrupted edge carries: the corrupted run's output of u, or another replacement. A run of each prompt, one
backward pass, one product. Positive: corrupting the edge would lower the metric, to first order. TransformerLens takes
the gradient in the corrupted run instead (`attribution_patch`). It is the cheapest score and the crudest: where the
metric bends between the two runs, EAP-IG is closer to the exact effect.

References:
    Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.progress import Progress


def score_eap(
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
    """Estimate every edge's effect from the gradient in the clean run; arguments as of `attribute`.

    Returns:
        Scores whose `checks["completeness_gap"]` says how far a straight line misses the exact effect of replacing the
        input; with the corrupted run, the true difference of the metric.

    Raises:
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient, or none in the clean run (`kl`).
    """
    return attribute(
        model, pairs, metric, name="eap", shares=(1.0,), ablation=ablation, reference=reference, seed=seed, axis=axis,
        level=level, budget=budget, progress=progress,
    )  # fmt: skip
