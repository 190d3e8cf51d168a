"""Scores from sweeps: nodes by the effect of patching them alone, edges by the weaker of their two nodes.

1. Patch each head's z and each MLP's output, over all positions, from the clean into the corrupted run.
2. A node's effect is the share of the clean-corrupted difference that this restores; input and logits restore all.
3. score(u -> v) = the smaller of the two nodes' effects in size, with its sign, times the difference of the metric.

The top edges are then exactly the edges between the top nodes: nodes are pruned, and the edges between kept ones stay.
It does not distinguish edges between the same nodes, and is the cheapest baseline that follows from the heatmaps.

References:
    Wang et al. 2022, arXiv:2211.00593 (patching of nodes).
"""

from __future__ import annotations

import numpy as np

from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.sweeps.nodes import sweep_nodes


def score_node_sweep(experiment: Experiment) -> EdgeScores:
    """Score edges by the swept effects of their nodes; see the module.

    Returns:
        Scores in the metric's unit, positive where both nodes help; `node_effects` has the effects of the nodes.

    References:
        Wang et al. 2022, arXiv:2211.00593.
    """
    swept = sweep_nodes(experiment)
    gap = float((swept.clean - swept.corrupt).mean())
    layout = Layout.of(experiment.model.spec)
    effects = swept.effects
    weights = np.array([effects[node.name] for node in layout.nodes])
    errors = np.array([swept.standard_errors[node.name] for node in layout.nodes])
    sources, targets = np.arange(len(layout.writers))[:, None], np.array(layout.owners)[None]
    target_is_weaker = np.abs(weights[targets]) < np.abs(weights[sources])
    weaker = np.where(target_is_weaker, targets, sources)
    real = real_edges(layout)
    return scores_of(
        experiment, "sweep", weights[weaker] * gap * real, errors[weaker] * abs(gap) * real,
        checks={"largest_node_standard_error": float(errors.max())}, node_effects=effects,
    )  # fmt: skip
