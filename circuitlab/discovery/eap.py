"""EAP: edge attribution patching, from one gradient.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . dm/dx_v, the gradient taken in the clean run

r_u is what a corrupted edge carries: the corrupted run's output of u, or another replacement. A run of each prompt, one
backward pass, one product. Positive: corrupting the edge would lower the metric, to first order. TransformerLens takes
the gradient in the corrupted run instead (`attribution_patch`). It is the cheapest and least accurate score: where the
metric is not linear between the two runs, EAP-IG is closer to the exact effect.

References:
    Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment


def score_eap(experiment: Experiment, *, axis: str = "all", level: str = "edge") -> EdgeScores | NodeScores:
    """Estimate every edge's effect from the gradient in the clean run; arguments as of `attribute`.

    Returns:
        Scores whose `checks["completeness_gap"]` is how far a linear estimate misses the exact effect of replacing the
        input; with the corrupted run, the true difference of the metric.

    Raises:
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient, or none in the clean run (`kl`).

    References:
        Syed et al. 2023, arXiv:2310.10348.
    """
    return attribute(experiment, name="eap", shares=(1.0,), axis=axis, level=level)
