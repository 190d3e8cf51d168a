"""The gradient of a metric at every reader's input, from one backward pass through the unsplit model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import MetricError
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Slot
from circuitlab.patching.baseline import Baseline, at_answer


@dataclass(frozen=True, slots=True, eq=False)
class ReaderGradients:
    """Gradients of each example's metric.

    Attributes:
        readers: At every reader's input, in the order of the layout.
        start: At the input embedding; everything downstream follows from it.
    """

    readers: Float[Tensor, "reader batch seq d_model"]
    start: Float[Tensor, "batch seq d_model"]


def reader_gradients(
    model: Model, baseline: Baseline, metric: Metric, start: Float[Tensor, "batch seq d_model"]
) -> ReaderGradients:
    """Run the model from an embedding and take the gradient of the metric at every reader.

    The gradient at a head's q, k and v, pulled back through its projection and the norm, is the gradient at that head's
    input: the forward pass need not be split.

    Args:
        model: The model.
        baseline: The batch.
        metric: What is differentiated; examples do not interact, so the sum over them gives each its own gradient.
        start: Embedding to start from: the clean one, the corrupted one, or one between them.

    Raises:
        MetricError: The metric has no gradient (accuracy, rank).
    """
    if not metric.smooth:
        raise MetricError(f"metric {metric.name!r} has no gradient. Use logit_diff, prob_diff or log_prob.")
    trace = model.trace(start, baseline.frame)
    with torch.enable_grad():
        logits = model.logits(at_answer(trace.resid_final, baseline.batch.answer_at))
        total = metric(logits, baseline.batch).sum()
    if not total.requires_grad:
        raise MetricError(
            f"metric {metric.name!r} does not depend on the logits in a way that torch can differentiate."
        )
    points = [trace.start, *trace.q, *trace.k, *trace.v, *trace.mlp_normed, trace.resid_final]
    at_start, *rest = torch.autograd.grad(total, points, allow_unused=True)
    rest = [torch.zeros_like(p) if g is None else g for g, p in zip(rest, points[1:], strict=True)]
    n = model.spec.n_layers
    per_slot = dict(zip(Slot, (rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n]), strict=True))
    found = []
    for layer in range(n):
        for slot in Slot:
            found.append(model.pull_back(layer, slot, trace.resid_pre[layer], per_slot[slot][layer]))
        if model.spec.has_mlp:
            found.append(model.pull_back(layer, None, trace.mlp_in[layer], rest[3 * n + layer]))
    found.append(rest[-1][None])
    return ReaderGradients(torch.cat(found), at_start)
