"""EAP-IG along activations: one sublayer at a time, its output goes from its replacement to its clean value.

1. For each sublayer S (the embedding, each attention layer with all its heads, each MLP) and k = 1 .. m, run what comes
   after S with its output at r_S + (k/m)(a_S - r_S), everything before it clean and everything behind it following.
2. Take the gradient of the metric at every reader behind S.
3. score(u -> v) = sum over positions and dimensions of (a_u - r_u) times the mean of the m gradients at v, for u in S.

Positive: corrupting the edge would lower the metric, to first order. k = m is the clean run, which all sublayers share,
and m = 1 is EAP. It serves any replacement r, and costs (m - 1)(2 L + 1) runs and backward passes of on average half
the model, for L layers. This is the true average over a sublayer's own path: the published code also adds, at every
step, products with gradients at readers that the sublayer does not feed, and divides by the number of sublayers.

References:
    Marks et al. 2024, arXiv:2403.19647, in the form for edges; Hanna et al. 2024, arXiv:2403.17806, its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.discovery.input_path import check_slope, streams_alive
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.models.traced import PassGradients, Window, run_plain, trace
from circuitlab.parts import Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gradients.edge_products import EdgeProducts, WriterValues, replacement_of_writers
from circuitlab.patching.gradients.metric_gradients import gradients_and_values
from circuitlab.patching.gradients.sublayer_path import Sublayer, SublayerPaths, sublayers
from circuitlab.resources import Resources
from circuitlab.stats import RunningMean


def score_eap_ig_activations(experiment: Experiment, *, steps: int = 5, level: str = "edge") -> EdgeScores | NodeScores:
    """Estimate every edge's effect from `steps` gradients along its source's own path; see the module.

    Args:
        experiment: What is scored: pairs, the metric that is differentiated, and what a corrupted edge carries.
        steps: How many gradients a sublayer.
        level: "edge"; "node" or "neuron", with the mean gradient at the writer's output.

    Returns:
        Scores whose `checks["completeness_gap"]` says how far the integrals along the sublayers' paths miss the exact
        effects of replacing each sublayer alone: the sum of the misses in size, as a share of the sum of the effects.
        It falls with more steps.

    Raises:
        ConfigError: The ablation does not go with these pairs.
        MetricError: The metric has no gradient.
    """
    model, metric = experiment.model, experiment.metric
    alive = streams_alive(model, experiment.replacement) + 3 * model.spec.n_heads
    batches = experiment.recordings.parts(alive)
    running = RunningMean(real_edges(Layout.of(model.spec)) if level == "edge" else 1.0)
    integrals, effects = [], []
    for number, batch in enumerate(batches):
        found = _attributed(experiment, batch, steps, level, experiment.resources.part(number, len(batches)))
        running.add(found.scores.double().cpu().numpy())
        integrals.append(found.integrals.double().cpu().numpy())
        effects.append(found.effects.double().cpu().numpy())
    estimated, exact = np.concatenate(integrals, 1), np.concatenate(effects, 1)
    check_slope(running.mean, exact[0], metric, steps)
    missed = np.abs(estimated.mean(1) - exact.mean(1)).sum()
    about: dict[str, Any] = {
        "spec": model.spec, "values": running.mean, "standard_error": running.standard_error,
        "method": "eap-ig-activations", "metric": metric.name, "n_examples": sum(map(len, batches)),
        "checks": {"completeness_gap": float(missed / max(1e-12, np.abs(exact.mean(1)).sum()))},
    }  # fmt: skip
    return EdgeScores(**about) if level == "edge" else NodeScores(level=level, **about)


@dataclass(frozen=True, slots=True, eq=False)
class _Attributed:
    """One batch: every score; each sublayer's integral and exact effect, one row a sublayer."""

    scores: Float[Tensor, "batch writer *reader"]
    integrals: Float[Tensor, "_ batch"]
    effects: Float[Tensor, "_ batch"]


@torch.no_grad()
def _attributed(experiment: Experiment, batch: PairBatch, steps: int, level: str, resources: Resources) -> _Attributed:
    model, metric, put_in = experiment.model, experiment.metric, experiment.replacement
    arguments = model.block_arguments(batch.clean)
    clean, start = model.embedding(batch.clean), model.embedding(batch.corrupt)
    whole = Window.whole(batch)
    corrupt = run_plain(model, arguments, whole, start)
    other = (
        WriterValues.of(corrupt)
        if put_in.kind == "corrupt"
        else replacement_of_writers(model, put_in, batch, experiment.recordings.clean(batch))
    )
    corrupted = put_in.kind == "corrupt"
    window = Window.between(batch, clean - start, causal=model.spec.causal) if corrupted else whole

    at_end = trace(model, arguments, window, window.of(clean), around=corrupt)
    batch = batch.with_reference(model.logits(at_end.final)) if not metric.local else batch
    products = EdgeProducts(model, at_end, other)
    found, value = gradients_and_values(model, at_end, metric, batch)
    scores = products.scores(at_end, found) if level == "edge" else products.at_writers(found)
    paths = SublayerPaths(model, arguments, at_end, corrupt, metric, batch)
    integrals, effects, all_of_them = [], [], sublayers(model)
    for number, at in enumerate(all_of_them):
        last = at.layer == model.spec.n_layers - 1
        apart = products.of(at.writers, last).sum(0).to(clean.dtype)
        integral = (apart * _at_source(found, at)).sum((1, 2))
        for k in range(1, steps):
            behind = paths.gradients(at, (k / steps - 1) * apart)
            integral = integral + (apart * behind.source).sum((1, 2))
            if level != "edge":
                each = products.of(at.writers, last)
                scores[:, at.writers] += einsum(
                    each,
                    behind.source.to(each.dtype),
                    "writer batch seq d_model, batch seq d_model -> batch writer d_model",
                )
                continue
            for part in behind.readers:
                mine = products.of(at.writers, part.at_answer)
                more = einsum(
                    mine,
                    part.values.to(mine.dtype),
                    "writer batch seq d_model, reader batch seq d_model -> batch writer reader",
                )
                scores[:, at.writers, part.columns] += more
        integrals.append(integral / steps)
        effects.append(value - paths.value(at, -apart))
        resources.progress("eap-ig-activations", number + 1, len(all_of_them))
    scores = scores.sum(2) if level == "node" else scores
    return _Attributed(scores / steps, torch.stack(integrals), torch.stack(effects))


def _at_source(found: PassGradients, at: Sublayer) -> Float[Tensor, "batch _ d_model"]:
    """The gradient of the clean run at what a sublayer adds to the stream."""
    if at.kind is Kind.INPUT:
        return found.start
    block = found.blocks[at.layer]
    gradient = block.attn if at.kind is Kind.HEAD else block.mlp
    assert gradient is not None
    return gradient
