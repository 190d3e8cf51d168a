"""Random scores: the baseline that every method has to beat.

Each edge gets a number drawn from a standard normal distribution, by the seed and the model's shape alone. The prompts
and the metric have no part in it, so there is no error to measure, and no unit. Circuits of these scores are random
edges pruned to what connects; `graphs.random` draws connected circuits of a given size instead.

References:
    Mueller et al. 2025 (MIB), arXiv:2504.13151, where random rankings are a baseline.
"""

from __future__ import annotations

import numpy as np

from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment


def score_random(experiment: Experiment) -> EdgeScores:
    """Draw a score for every edge; the same seed gives the same scores."""
    real = real_edges(Layout.of(experiment.model.spec))
    drawn = np.random.default_rng(experiment.seed).standard_normal(real.shape)
    experiment.progress("random", 1, 1)
    return EdgeScores(
        spec=experiment.model.spec,
        values=np.where(real, drawn, 0.0),
        standard_error=np.zeros(real.shape),
        method="random",
        metric=experiment.metric.name,
        n_examples=experiment.n_examples,
    )
