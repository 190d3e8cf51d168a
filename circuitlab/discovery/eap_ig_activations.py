"""EAP-IG along activations: one sublayer at a time, its output goes from its replacement to its clean value.

1. For each sublayer S (the embedding, each attention layer with all its heads, each MLP) and k = 1 .. m, run what comes
   after S with its output at r_S + (k/m)(a_S - r_S), everything before it clean and everything after it recomputed.
2. Take the gradient of the metric at every reader after S.
3. score(u -> v) = sum over positions and dimensions of (a_u - r_u) times the mean of the m gradients at v, for u in S.

Positive: corrupting the edge would lower the metric, to first order. k = m is the clean run, which all sublayers share,
and m = 1 is EAP. It serves any replacement r, and costs (m - 1)(2 L + 1) runs and backward passes of on average half
the model, for L layers. This is the true average over a sublayer's own path: the published code also adds, at every
step, products with gradients at readers that the sublayer does not feed, and divides by the number of sublayers.

References:
    Marks et al. 2024, arXiv:2403.19647, in the form for edges; Hanna et al. 2024, arXiv:2403.17806, its code.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.discovery.averages import averaged, scores_of
from circuitlab.discovery.input_path import both_runs, check_slope, streams_alive
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.models.traced import PassGradients
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.metric_gradients import gradients_and_values
from circuitlab.patching.gradients.sublayer_path import Sublayer, SublayerPaths, sublayers
from circuitlab.resources import Resources


def score_eap_ig_activations(experiment: Experiment, *, steps: int = 5, level: str = "edge") -> EdgeScores | NodeScores:
    """Estimate every edge's effect from `steps` gradients along its source's own path; see the module.

    Args:
        experiment: The pairs, the metric to differentiate, and the replacement.
        steps: Number of gradients a sublayer.
        level: "edge"; "node" or "neuron", with the mean gradient at the writer's output.

    Returns:
        Scores whose `checks["completeness_gap"]` is how far the integrals along the sublayers' paths miss the exact
        effects of replacing each sublayer alone: the sum of the misses in size, as a share of the sum of the effects.
        It falls with more steps.

    Raises:
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient.

    References:
        Marks et al. 2024, arXiv:2403.19647.
    """
    model, metric = experiment.model, experiment.metric
    batches = experiment.recordings.parts(streams_alive(model, experiment.replacement) + 3 * model.spec.n_heads)
    each = (
        (batch, _attributed(experiment, batch, steps, level, experiment.resources.part(number, len(batches))))
        for number, batch in enumerate(batches)
    )
    running, found = averaged(each, Layout.of(model.spec) if level == "edge" else None)
    estimated, exact = found["integrals"].mean(1), found["effects"].mean(1)
    check_slope(running.mean, found["effects"][0], metric, steps)
    gap = float(np.abs(estimated - exact).sum() / max(1e-12, np.abs(exact).sum()))
    return scores_of(experiment, "eap-ig-activations", running, level=level, checks={"completeness_gap": gap})


@torch.no_grad()
def _attributed(
    experiment: Experiment, batch: PairBatch, steps: int, level: str, resources: Resources
) -> dict[str, Tensor]:
    """The scores of one batch; each sublayer's integral and exact effect, `[sublayer, batch]`."""
    model, metric = experiment.model, experiment.metric
    runs, clean = both_runs(model, experiment, batch)
    products = runs.products
    at_clean, value = gradients_and_values(model, clean, metric, runs.batch)
    scores = products.scores(clean, at_clean) if level == "edge" else products.at_writers(at_clean)
    paths = SublayerPaths(model, runs.arguments, clean, runs.corrupt, metric, runs.batch)
    integrals, effects, all_of_them = [], [], sublayers(model)
    for number, at in enumerate(all_of_them):
        last = at.layer == model.spec.n_layers - 1
        difference = products.of(at.writers, last).sum(0).to(clean.start.dtype)
        integral = (difference * _at_source(at_clean, at)).sum((1, 2))
        for k in range(1, steps):
            later = paths.gradients(at, (k / steps - 1) * difference)
            integral = integral + (difference * later.source).sum((1, 2))
            if level != "edge":
                each = products.of(at.writers, last)
                scores[:, at.writers] += einsum(
                    each,
                    later.source.to(each.dtype),
                    "writer batch seq d_model, batch seq d_model -> batch writer d_model",
                )
                continue
            for part in later.readers:
                each = products.of(at.writers, part.at_answer)
                scores[:, at.writers, part.columns] += einsum(
                    each,
                    part.values.to(each.dtype),
                    "writer batch seq d_model, reader batch seq d_model -> batch writer reader",
                )
        integrals.append(integral / steps)
        effects.append(value - paths.value(at, -difference))
        resources.progress("eap-ig-activations", number + 1, len(all_of_them))
    scores = scores.sum(2) if level == "node" else scores
    return {"scores": scores / steps, "integrals": torch.stack(integrals), "effects": torch.stack(effects)}


def _at_source(found: PassGradients, at: Sublayer) -> Float[Tensor, "batch _ d_model"]:
    """The gradient of the clean run at what a sublayer adds to the stream."""
    if at.kind is Kind.INPUT:
        return found.start
    block = found.blocks[at.layer]
    gradient = block.attn if at.kind is Kind.HEAD else block.mlp
    assert gradient is not None
    return gradient
