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

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch, batches_of
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores, RunningMean
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.models.traced import Traced, Window, run_plain, trace
from circuitlab.parts import Layout
from circuitlab.patching.edge_products import EdgeProducts
from circuitlab.patching.gradients import judged, metric_slopes
from circuitlab.patching.packing import fitting
from circuitlab.progress import Progress

POINTS = ("paper", "published-code")


def score_eap_ig(
    model: Model,
    pairs: PairSet | PairBatch,
    metric: Metric,
    *,
    steps: int = 5,
    points: str = "paper",
    name: str = "eap-ig",
    budget: int | None = None,
    progress: Progress,
) -> EdgeScores:
    """Estimate every edge's effect from `steps` gradients; see the module.

    Args:
        model: A loaded model.
        pairs: What is scored.
        metric: What is differentiated.
        steps: How many gradients.
        points: Where on the path they are taken: "paper" or "published-code".
        name: What the scores call their method.
        budget: Bytes that a run may take.
        progress: Called with (step, done, total).

    Returns:
        Scores whose `checks["completeness_gap"]` says how far the gradients, summed along the path, miss the true
        difference of the metric, as a share of it: 0 for a perfect integral. It falls with more steps.

    Raises:
        ConfigError: `steps` is not a positive number.
        UnknownNameError: No such points.
        MetricError: The metric has no gradient.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps is {steps!r}; EAP-IG averages a whole number of at least 1 gradients (5 is usual).")
    if points not in POINTS:
        raise UnknownNameError.of("value of option 'points'", points, POINTS)
    running = RunningMean(Layout.of(model.spec))
    integral, truth = [], []
    batches = [
        part for batch in batches_of(pairs, model.device) for part in fitting(model, batch, budget, _alive(model))
    ]
    for number, batch in enumerate(batches):
        found = _attributed(model, batch, metric, steps, points)
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
def _attributed(model: Model, batch: PairBatch, metric: Metric, steps: int, points: str) -> _Attributed:
    frame = model.frame(batch.clean)
    clean, start = model.embedding(batch.clean), model.embedding(batch.corrupt)
    window = Window.between(batch, clean - start)
    corrupt = run_plain(model, frame, Window.whole(batch), start)
    start, end = window.of(start), window.of(clean)

    # The clean end comes first: its run gives the writers' outputs, and the logits that a divergence compares with.
    at_end = trace(model, frame, window, end, around=corrupt)
    batch = batch.with_reference(model.logits(at_end.final)) if not metric.local else batch
    products = EdgeProducts(model, at_end, corrupt)
    truth = judged(model, metric, batch, at_end.final.detach()) - judged(model, metric, batch, corrupt.final)
    total = _Sum(model, products, metric, batch)
    if points == "paper":
        total.add(at_end)
    del at_end

    for k in range(int(points == "paper"), steps):
        total.add(trace(model, frame, window, torch.lerp(start, end, k / steps), around=corrupt))
    return _Attributed(total.scores / steps, (products.start * total.at_start).sum((1, 2)) / steps, truth)


class _Sum:
    """Products and gradients at the embedding, added up over runs."""

    def __init__(self, model: Model, products: EdgeProducts, metric: Metric, batch: PairBatch) -> None:
        self._model, self._products, self._metric, self._batch = model, products, metric, batch
        self.scores = self.at_start = products.start.new_zeros(())

    def add(self, traced: Traced) -> None:
        """One run more; its graph is gone after it."""
        gradients, _ = metric_slopes(self._model, traced, self._metric, self._batch)
        self.scores = self._products.scores(traced, gradients) + self.scores
        self.at_start = gradients.start + self.at_start


def _alive(model: Model) -> int:
    """How many tensors of the stream's size stay in memory for every prompt, beside those of one block."""
    # Every writer's difference and the gradients of one layer's heads; per block the corrupted run's points, those of
    # the present run with their gradients, and what its graph holds beside them.
    return len(Layout.of(model.spec).writers) + 3 * model.spec.n_heads + 30 * model.spec.n_layers
