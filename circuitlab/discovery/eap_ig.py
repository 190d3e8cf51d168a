"""EAP-IG: edge attribution with integrated gradients along the input embedding.

1. Run the corrupted prompt, and the clean one with its graph; take the difference d_u = a_u - a'_u of every writer's
   output.
2. For k = 1 .. m run the model from the embedding e' + (k/m)(e - e') and take the gradient of the metric at every
   reader's input, from one backward pass. The last of these runs is the clean one.
3. score(u -> v) = sum over positions and dimensions of d_u times the mean of the m gradients at v.

Positive: corrupting the edge would lower the metric, to first order. m = 1 is EAP (its gradient at the clean prompt).
The published edge code takes k = 0 .. m-1 instead; here the clean end is in and the corrupted one out, as in the paper.

References:
    Hanna et al. 2024, arXiv:2403.17806; Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch, batches_of
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores, RunningMean
from circuitlab.errors import ConfigError, MetricError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.models.traced import Traced, Window, run_plain, trace
from circuitlab.parts import Layout
from circuitlab.patching.edge_products import EdgeProducts
from circuitlab.patching.gradients import judged, metric_slopes
from circuitlab.patching.packing import fitting
from circuitlab.progress import Progress


def score_eap_ig(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    steps: int = 5,
    name: str = "eap-ig",
    budget: int | None = None,
    progress: Progress,
) -> EdgeScores:
    """Estimate every edge's effect from `steps` gradients; see the module.

    Returns:
        Scores whose `checks["completeness_gap"]` says how far the gradients, summed along the path, miss the true
        difference of the metric, as a share of it: 0 for a perfect integral. It falls with more steps.

    Raises:
        ConfigError: `steps` is not a positive number.
        MetricError: The metric has no gradient.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps is {steps!r}; EAP-IG averages a whole number of at least 1 gradients (5 is usual).")
    running = RunningMean(Layout.of(model.spec))
    integral, truth = [], []
    batches = [
        part for batch in batches_of(pairs, model.device) for part in fitting(model, batch, budget, _alive(model))
    ]
    for number, batch in enumerate(batches):
        found = _attributed(model, batch, metric, steps)
        running.add(found.scores.double().cpu().numpy())
        integral.append(found.integral.double().cpu().numpy())
        truth.append(found.truth.double().cpu().numpy())
        progress(name, number + 1, len(batches))
    # Rounding leaves a little where there is no slope; some edge of a graph with a slope carries more than this.
    if np.abs(running.mean).max() <= 1e-5 * np.abs(np.concatenate(truth)).mean():
        raise MetricError(
            f"metric {metric.name!r} has no gradient anywhere on the path of {steps} steps (a divergence from the "
            "clean run has none at the clean prompt), so every score would be 0. Use logit_diff, or more steps."
        )
    total, wanted = np.concatenate(integral).mean(), np.concatenate(truth).mean()
    return EdgeScores(
        spec=model.spec,
        values=running.mean,
        standard_error=running.standard_error,
        method=name,
        metric=metric.name,
        n_examples=sum(map(len, batches)),
        checks={"completeness_gap": float(abs(total - wanted) / max(1e-12, abs(wanted)))},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Attributed:
    """One batch: every edge's score, the integral of the gradient along the path, and the difference it estimates."""

    scores: Float[Tensor, "batch writer reader"]
    integral: Float[Tensor, " batch"]
    truth: Float[Tensor, " batch"]


@torch.no_grad()
def _attributed(model: Model, batch: PairBatch, metric: Metric, steps: int) -> _Attributed:
    frame = model.frame(batch.clean)
    clean, start = model.embedding(batch.clean), model.embedding(batch.corrupt)
    window = Window.between(batch, clean - start)
    corrupt = run_plain(model, frame, Window.whole(batch), start)
    start, end = window.of(start), window.of(clean)

    # The clean end comes first: its run gives the writers' outputs, and the logits that a divergence compares with.
    at_end = trace(model, frame, window, end, around=corrupt)
    batch = batch.with_reference(model.logits(at_end.final)) if not metric.local else batch
    products = EdgeProducts(model, at_end, corrupt)
    scores, at_start, value = _multiplied(model, products, metric, batch, at_end)
    del at_end

    for k in range(1, steps):
        along = trace(model, frame, window, torch.lerp(start, end, k / steps), around=corrupt)
        more, slope, _ = _multiplied(model, products, metric, batch, along)
        del along  # or two runs' worth of points would be in memory
        scores += more
        at_start = at_start + slope
    return _Attributed(
        scores.div_(steps),
        (products.start * at_start).sum((1, 2)) / steps,
        value - judged(model, metric, batch, corrupt.final),
    )


def _multiplied(
    model: Model, products: EdgeProducts, metric: Metric, batch: PairBatch, traced: Traced
) -> tuple[Float[Tensor, "batch writer reader"], Float[Tensor, "batch seq d_model"], Float[Tensor, " batch"]]:
    """Every edge's product in one run, the gradient at the embedding, and the metric's value."""
    gradients, value = metric_slopes(model, traced, metric, batch)
    return products.scores(traced, gradients), gradients.start, value


def _alive(model: Model) -> int:
    """How many tensors of the stream's size stay in memory for every prompt, beside those of one block."""
    # Every writer's difference and the gradients of one layer's heads; per block the corrupted run's points, those of
    # the present run with their gradients, and what its graph holds beside them.
    return len(Layout.of(model.spec).writers) + 3 * model.spec.n_heads + 30 * model.spec.n_layers
