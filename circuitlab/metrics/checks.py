"""Requirements of a metric, tested on the logits of a few prompts before sweeps and scores run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.errors import MetricError
from circuitlab.metrics.base import Metric

# Kernels may round differently for another number of rows; a metric that mixes examples is off by far more.
ROUNDING = 1e-3
# A gradient below this share of the metric's effect is rounding: a divergence from the clean run, in the clean run.
FLAT = 1e-7
SMOOTH = "logit_diff, prob_diff or log_prob"


def check_row_wise(metric: Metric, logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> None:
    """Refuse a metric whose value for an example depends on the other examples, or changes from call to call.

    Runs are packed by memory, so an example is judged beside others every time: such a metric would give other numbers
    on another machine. The rows are judged again in reversed order, without those of the last pair.

    Args:
        metric: The metric.
        logits: Next-token logits at the answer position.
        batch: The examples.

    Raises:
        MetricError: It gives an example another value than before, or whatever else the metric does wrong.
    """
    rows = torch.arange(len(batch), device=logits.device)
    if batch.n_pairs > 1:
        rows = rows[batch.index != batch.index[-1]]  # all rows of the last pair
    rows = rows.flip(0)
    with torch.no_grad():
        first, again = metric(logits, batch)[rows], metric(logits[rows], batch.take(rows))
    changed = (first - again).abs() > ROUNDING * torch.maximum(first.abs(), first.new_ones(()))
    if bool(changed.any()):
        place = int(changed.nonzero()[0])
        raise MetricError(
            f"metric {metric.name!r} is {float(first[place]):.4g} for an example and {float(again[place]):.4g} for the "
            "same example in another batch. Its value must be about one example's logits alone: take no means over the "
            "batch, no random numbers, and keep nothing between two calls."
        )


def check_gradient(
    metric: Metric,
    clean: Float[Tensor, "batch d_vocab"],
    corrupt: Float[Tensor, "batch d_vocab"],
    batch: PairBatch,
    shares: Sequence[float],
    method: str,
) -> None:
    """Refuse a metric that has no gradient where a method takes it.

    Args:
        metric: The metric.
        clean: Next-token logits of the clean prompts at the answer position.
        corrupt: Of the corrupted prompts, or of the empty circuit.
        batch: The examples.
        shares: Where the gradient is taken: 1 is the clean run, 0 the corrupted one, between them the way from one to
            the other.
        method: Name of the method, for the message.

    Raises:
        MetricError: It has no gradient: it declares so (`smooth`), it detaches, or it is flat at all these points.
    """
    if not metric.smooth:
        raise MetricError(no_gradient(metric, method))
    largest = 0.0
    for share in shares:
        logits = (share * clean + (1 - share) * corrupt).detach().requires_grad_()
        with torch.enable_grad():
            total = metric(logits, batch).sum()
        if not total.requires_grad:
            raise MetricError(
                f"metric {metric.name!r} does not depend on the logits in a way that torch can differentiate, and "
                f"method {method!r} takes its gradient. Leave out detach(), no_grad(), comparisons and whole numbers, "
                "or take a method that needs no gradient: exact, sweep, acdc."
            )
        (found,) = torch.autograd.grad(total, logits, allow_unused=True)
        largest = max(largest, 0.0 if found is None else float(found.abs().max()))
    with torch.no_grad():
        effect = float((metric(clean, batch) - metric(corrupt, batch)).abs().mean())
    if largest <= FLAT * effect:
        where = " at the clean prompt, the only place where it is taken" if tuple(shares) == (1.0,) else ""
        hint = f"{SMOOTH}, or eap-ig" if where else SMOOTH
        raise MetricError(
            f"metric {metric.name!r} has no gradient{where}, so every score of method {method!r} would be 0. "
            f"Use {hint}, or take a method that needs no gradient: exact, sweep, acdc."
        )


def no_gradient(metric: Metric, method: str = "") -> str:
    """The message for a metric that is declared to have no gradient.

    Returns:
        The message.
    """
    why = f", and method {method!r} takes it" if method else ""
    return f"metric {metric.name!r} has no gradient{why}. Use {SMOOTH}" + (
        ", or a method that needs no gradient: exact, sweep, acdc." if method else "."
    )
