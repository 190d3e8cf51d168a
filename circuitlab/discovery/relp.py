"""RelP: edge attribution with relevance in the place of gradients.

    score(u -> v) = sum over positions and dimensions of (a_u - r_u) . R_v

R_v is what reaches v's input when the metric is handed back through the clean run by the rules of layer-wise relevance
propagation (`models.relp`): norms with their scale fixed, activations by the ratio act(z) / z, gates by halves. Values
stay as they are to the bit; a run of each prompt and one backward pass, as in EAP. Positive: corrupting the edge would
lower the metric, to the accuracy of the rules, which tame the noise of gradients through norms and activations. With
`attention_rule` patterns are held fixed too, so that queries and keys get nothing.

References:
    Jafari et al. 2025, arXiv:2508.21258.
"""

from __future__ import annotations

from typing import Any, cast

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.input_path import attribute
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.models.relp import RelevanceModel
from circuitlab.patching.runs.replacement import Replacement
from circuitlab.progress import Progress


def score_relp(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    attention_rule: bool = False,
    ablation: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    axis: str = "all",
    level: str = "edge",
    budget: int | None = None,
    progress: Progress,
) -> EdgeScores | NodeScores:
    """Estimate every edge's effect from the relevance of its reader; other arguments as of `attribute`.

    Args:
        model: A loaded model.
        pairs: What is scored.
        metric: What is handed back; it must have a gradient.
        attention_rule: Hold attention patterns fixed.
        ablation: What a corrupted edge carries.
        reference: Prompts that means are taken of.
        seed: Of noise.
        axis: "all", "position" or "span".
        level: "edge", "node" or "neuron".
        budget: Bytes that a run may take.
        progress: Called with (step, done, total).

    Returns:
        Scores whose `checks["completeness_gap"]` says how far the input's relevance misses the exact effect of
        replacing the input; with the corrupted run, the true difference of the metric.

    Raises:
        UnsupportedModelError: A part of the model is of no form that the rules know, with the measured number.
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient, or none in the clean run (`kl`).
    """
    with_rules = cast("Any", RelevanceModel(model, attention_rule))
    return attribute(
        with_rules, pairs, metric, name="relp", shares=(1.0,), ablation=ablation, reference=reference, seed=seed,
        axis=axis, level=level, budget=budget, progress=progress,
    )  # fmt: skip
