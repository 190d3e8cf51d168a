"""Random scores: the baseline of every method.

Each edge gets a number from a standard normal distribution, which depends on the seed and the model's shape only. The
prompts and the metric are not used, so there is no error measure and no unit. Circuits of these scores are random edges
after pruning; `graphs.random` draws connected circuits of a given size instead.

References:
    Mueller et al. 2025 (MIB), arXiv:2504.13151, where random rankings are a baseline.
"""

from __future__ import annotations

import numpy as np

from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment


def score_random(experiment: Experiment) -> EdgeScores:
    """Draw a score for every edge.

    Returns:
        Scores without a unit; the same seed gives the same scores.

    References:
        Mueller et al. 2025 (MIB), arXiv:2504.13151.
    """
    real = real_edges(Layout.of(experiment.model.spec))
    drawn = np.random.default_rng(experiment.seed).standard_normal(real.shape)
    experiment.progress("random", 1, 1)
    return scores_of(experiment, "random", np.where(real, drawn, 0.0))
