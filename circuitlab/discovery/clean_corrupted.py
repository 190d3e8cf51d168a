"""Clean-corrupted: edge attribution from two gradients, one at each end of the input's path.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . (dm/dx_v in the clean run + in the corrupted) / 2

Two backward passes: the trapezoidal rule, which is exact where the gradient changes linearly from one prompt to the
other; EAP-IG also takes gradients in between. r_u is the output in the corrupted run, or another replacement; the two
ends are the two prompts in any case. Positive: corrupting the edge would lower the metric.

References:
    Hanna et al. 2024, arXiv:2403.17806 (as `clean-corrupted` in its code).
"""

from __future__ import annotations

from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment


def score_clean_corrupted(experiment: Experiment, *, axis: str = "all", level: str = "edge") -> EdgeScores | NodeScores:
    """Estimate every edge's effect from the gradients at both prompts; arguments as of `attribute`.

    Returns:
        Scores whose `checks["completeness_gap"]` is how far the mean of the two gradients misses the exact effect of
        replacing the input; with the corrupted run, the true difference of the metric.

    Raises:
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient.

    References:
        Hanna et al. 2024, arXiv:2403.17806.
    """
    return attribute(experiment, name="clean-corrupted", shares=(1.0, 0.0), axis=axis, level=level)
