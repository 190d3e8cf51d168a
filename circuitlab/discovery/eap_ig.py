"""EAP-IG: edge attribution with integrated gradients along the input embedding.

1. Run the corrupted prompt, and the clean one with its graph; take the difference d_u = a_u - a'_u of every writer's
   output.
2. For k = 1 .. m run the model from the embedding e' + (k/m)(e - e') and take the gradient of the metric at every
   reader's input, from one backward pass. The last of these runs is the clean one.
3. score(u -> v) = sum over positions and dimensions of d_u times the mean of the m gradients at v.

Positive: corrupting the edge would lower the metric, to first order. m = 1 is EAP (its gradient at the clean prompt).
The published edge code takes k = 0 .. m-1 instead: the corrupted end is in and the clean one out. `points` chooses;
"paper" is the default, and at m = 1 the other is the gradient at the corrupted prompt's embedding.

References:
    Hanna et al. 2024, arXiv:2403.17806; Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from typing import Annotated

from circuitlab.declarations import Setting
from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.patching.experiment import Experiment

POINTS = ("paper", "published-code")
Points = Annotated[str, Setting(what='"paper" takes k = 1 .. m, "published-code" k = 0 .. m-1', allowed=POINTS)]


def score_eap_ig(
    experiment: Experiment,
    *,
    steps: int = 5,
    points: Points = "paper",
    axis: str = "all",
    level: str = "edge",
) -> EdgeScores | NodeScores:
    """Estimate every edge's effect from `steps` gradients; see the module.

    Args:
        experiment: The pairs and the metric.
        steps: Number of gradients.
        points: Where on the path they are taken: "paper" or "published-code".
        axis: "all", "position" or "span".
        level: "edge", "node" or "neuron".

    Returns:
        Scores whose `checks["completeness_gap"]` is how far the gradients, summed along the path, miss the true
        difference of the metric, as a share of it: 0 for a perfect integral. It falls with more steps.

    Raises:
        ConfigError: `steps` is not a positive number.
        MetricError: The metric has no gradient.

    References:
        Hanna et al. 2024, arXiv:2403.17806.
    """
    first = int(points == "paper")
    shares = [(k + first) / steps for k in range(steps)]
    return attribute(experiment, name="eap-ig", shares=shares, axis=axis, level=level)
