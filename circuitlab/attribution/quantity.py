"""What can be split into a sum over the residual stream: weighted sums of logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import NO_TOKEN, PairBatch
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.metrics.base import METRICS, no_distractor

Weights = Float[Tensor, "batch word"]


def _logit_diff(batch: PairBatch, n_words: int) -> Weights:
    if not batch.has_distractors:
        raise MetricError(no_distractor("logit_diff", "some pairs have none"))
    return _spread(batch.answers, n_words) - _spread(batch.distractors, n_words)


def _logit(batch: PairBatch, n_words: int) -> Weights:
    return _spread(batch.answers, n_words)


QUANTITIES: dict[str, Callable[[PairBatch, int], Weights]] = {"logit_diff": _logit_diff, "logit": _logit}
"""By name: `logit_diff`, mean logit of the answers minus that of the distractors; `logit`, the first half of it."""


def check_quantity(name: object) -> str:
    """The name of a quantity that is a sum over the stream.

    Raises:
        ConfigError: It is a metric of another kind.
        UnknownNameError: It is no metric at all.
    """
    found = getattr(name, "name", name)
    if found in QUANTITIES:
        return str(found)
    if not isinstance(found, str) or found in METRICS:
        raise ConfigError(
            f"metric {found!r} is no weighted sum of logits, so that no part of the stream has a share of it. "
            f"Attribute {' or '.join(QUANTITIES)}; logit_lens(...) and sweep(...) take any metric."
        )
    raise UnknownNameError.of("metric", found, QUANTITIES)


def weighted_words(name: str, batch: PairBatch) -> tuple[Int[Tensor, " word"], Weights]:
    """The words whose logits count, and each example's weights: the quantity is `(logits * weights).sum(-1)`."""
    words, compact = batch.compact()
    return words, QUANTITIES[name](compact, len(words))


def _spread(tokens: Int[Tensor, "batch answer"], n_words: int) -> Weights:
    """The mean over each example's own tokens as weights of all words; places filled with -1 do not count."""
    there = (tokens != NO_TOKEN).double()
    weights = torch.zeros(len(tokens), n_words, dtype=torch.float64, device=tokens.device)
    return weights.scatter_add_(1, tokens.clamp_min(0), there / there.sum(1, keepdim=True))
