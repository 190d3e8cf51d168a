"""EAP-IG: edge attribution with integrated gradients along the input embedding.

1. Run the clean and the corrupted prompt; take the difference d_u = a_u - a'_u of every writer's output.
2. For k = 1 .. m run the model from the embedding e' + (k/m)(e - e') and take the gradient of the metric at every
   reader's input, from one backward pass.
3. score(u -> v) = sum over positions and dimensions of d_u times the mean of the m gradients at v.

Positive: corrupting the edge would lower the metric, to first order. m = 1 is EAP (its gradient at the clean prompt).
The published edge code takes k = 0 .. m-1 instead; here the clean end is in and the corrupted one out, as in the paper.

References:
    Hanna et al. 2024, arXiv:2403.17806; Syed et al. 2023, arXiv:2310.10348.
"""

from __future__ import annotations

import numpy as np
import torch

from circuitlab.data.batch import PairBatch, batches_of
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores, RunningMean
from circuitlab.errors import ConfigError, MetricError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import Baseline, record_baseline
from circuitlab.patching.gradients import ReaderGradients, reader_gradients
from circuitlab.patching.packing import fitting
from circuitlab.patching.writers import writer_differences
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
    # A gradient per reader and a difference per writer stay alive, beside the graph of a forward pass.
    alive = len(running.layout.readers) + len(running.layout.writers) + 14 * model.spec.n_layers
    whole = batches_of(pairs, model.device)
    batches = [part for batch in whole for part in fitting(model, batch, budget, alive)]
    for number, batch in enumerate(batches):
        baseline = record_baseline(model, batch)
        gradients = _mean_gradients(model, baseline, metric, steps)
        differences = writer_differences(model, baseline)
        scores = torch.einsum("wbsd,rbsd->bwr", differences.float(), gradients.readers.float())
        running.add(scores.double().cpu().numpy())
        integral.append((differences[0] * gradients.start).double().sum((1, 2)).cpu().numpy())
        clean, corrupt = baseline.gap(metric)
        truth.append((clean - corrupt).double().cpu().numpy())
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


def _mean_gradients(model: Model, baseline: Baseline, metric: Metric, steps: int) -> ReaderGradients:
    start, end = baseline.corrupt.resid_pre[0], baseline.clean.resid_pre[0]
    readers, at_start = None, None
    for k in range(1, steps + 1):
        # Written so that the last step is the clean embedding to the bit.
        point = end - (1 - k / steps) * (end - start)
        found = reader_gradients(model, baseline, metric, point)
        readers = found.readers if readers is None else readers + found.readers
        at_start = found.start if at_start is None else at_start + found.start
    assert readers is not None
    assert at_start is not None
    return ReaderGradients(readers / steps, at_start / steps)
