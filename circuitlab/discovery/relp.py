"""RelP: edge attribution with relevance instead of gradients.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . R_v

R_v is the relevance at v's input when the metric is propagated back through the clean run by the rules of layer-wise
relevance propagation (`models.relp`): norms with their scale fixed, activations by the ratio act(z) / z, gates by
halves. Values are unchanged to the bit; the cost is a run of each prompt and one backward pass, as in EAP. Positive:
corrupting the edge would lower the metric, to the accuracy of the rules, which reduce the noise of gradients through
norms and activations. With `attention_rule` patterns are fixed too, so that queries and keys have no relevance.

References:
    Jafari et al. 2025, arXiv:2508.21258.
"""

from __future__ import annotations

from typing import Annotated

from circuitlab.declarations import Setting
from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.models.relp import RelevanceModel
from circuitlab.patching.experiment import Experiment


def score_relp(
    experiment: Experiment,
    *,
    attention_rule: Annotated[bool, Setting(what="hold attention patterns fixed")] = False,
    axis: str = "all",
    level: str = "edge",
) -> EdgeScores | NodeScores:
    """Estimate every edge's effect from the relevance of its reader; other arguments as of `attribute`.

    Args:
        experiment: The pairs, the metric and the replacement.
        attention_rule: Hold attention patterns fixed.
        axis: "all", "position" or "span".
        level: "edge", "node" or "neuron".

    Returns:
        Scores whose `checks["completeness_gap"]` is how far the input's relevance misses the exact effect of
        replacing the input; with the corrupted run, the true difference of the metric.

    Raises:
        UnsupportedModelError: A part of the model is of no form that the rules know, with the measured number.
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient, or none in the clean run (`kl`).

    References:
        Jafari et al. 2025, arXiv:2508.21258.
    """
    with_rules = RelevanceModel(experiment.model, attention_rule)
    return attribute(experiment, name="relp", shares=(1.0,), axis=axis, level=level, model=with_rules)
