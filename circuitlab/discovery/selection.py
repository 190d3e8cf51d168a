"""Find the smallest circuit that reaches a target, by ranking edges and asking the model at growing sizes.

Faithfulness does not grow steadily with size and can overshoot 1, so a circuit is taken only if its faithfulness lies
between the target and as far above 1 as the target is below. Sizes grow by a fifth until one fits; then the sizes
between it and the last one that did not are tried evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune
from circuitlab.graphs.ranking import mask_of
from circuitlab.metrics import Metric, resolve
from circuitlab.metrics.base import MetricFunction
from circuitlab.models.protocol import Model
from circuitlab.patching.baseline import check_gap
from circuitlab.patching.circuit_metric import Prepared, circuit_values, prepare
from circuitlab.patching.replacement import Replacement
from circuitlab.progress import Progress, silent

GROWTH = 1.2
AT_ONCE = 6
REFINEMENTS = 12


def select(
    model: Model,
    scores: EdgeScores,
    pairs: PairSet | PairBatch,
    target: float = 0.9,
    *,
    n_edges: int | None = None,
    signed: bool = False,
    metric: str | Metric | MetricFunction | None = None,
    ablation: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = silent,
) -> Circuit:
    """The smallest circuit of top edges that reaches the target on these pairs, pruned to what connects.

    A method that chose a circuit of its own (`scores.chosen`) is taken at its word, unless `n_edges` asks for another.

    Args:
        model: The model that was scored.
        scores: Scores of its edges.
        pairs: The discovery pairs; held-out pairs are for `evaluate`.
        target: Faithfulness to reach, between 0 and 1.
        n_edges: Take this many top edges instead (before pruning), whatever their faithfulness.
        signed: Rank by score; else by its absolute value, which keeps edges that hurt along with those that help.
        metric: Metric of the faithfulness; the scores' own by default.
        ablation: What excluded edges carry, as in `evaluate`.
        reference: Prompts that means are taken of; none of them may be among `pairs`.
        seed: Of noise.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).

    Returns:
        The circuit; its edges all lie on paths from the input to the logits.

    Raises:
        UnknownNameError: No such metric or ablation.
        ConfigError: The target is not above 0 and at most 1, or `n_edges` is out of range; what `evaluate` refuses of
            ablation and reference.
        GraphError: The scores are of another model.
        MetricError: The metric does not tell the clean run and the empty circuit apart.
    """
    if scores.spec != model.spec:
        raise GraphError(f"the scores are of model {scores.spec.name!r}, not of {model.spec.name!r}.")
    if n_edges is not None:
        if not 1 <= n_edges <= scores.layout.n_edges:
            raise ConfigError(f"n_edges is {n_edges}; the graph has {scores.layout.n_edges} edges, so 1 to that many.")
        return scores.circuit(prune(scores.top(n_edges, signed), scores.layout))
    if not 0 < target <= 1:
        raise ConfigError(f"target is {target}; a faithfulness to reach lies above 0 and at most at 1 (0.9 is usual).")
    if scores.chosen is not None:
        return scores.circuit(prune(scores.chosen, scores.layout))
    prepared = prepare(model, pairs, budget, replacement=ablation, reference=reference, seed=seed)
    search = _Search(model, scores, prepared, resolve(metric or scores.metric), signed, budget, progress)
    return scores.circuit(search.smallest(target))


class _Search:
    """Asks for the faithfulness of top-n circuits, each size once."""

    def __init__(
        self,
        model: Model,
        scores: EdgeScores,
        prepared: Prepared,
        metric: Metric,
        signed: bool,
        budget: int | None,
        progress: Progress,
    ) -> None:
        self._model, self._scores, self._prepared, self._metric = model, scores, prepared, metric
        self._budget, self._progress = budget, progress
        self._order = scores.ranked(signed)
        clean, empty = prepared.gaps(metric)
        check_gap(metric, clean, empty, prepared.empty_is)
        self._empty, self._gap = float(empty.mean()), float(clean.mean() - empty.mean())

    def smallest(self, target: float) -> Bool[np.ndarray, "writer reader"]:
        """Mask of the smallest circuit found."""
        total = len(self._order)
        sizes = _growing(total)
        last_miss = 0
        for start in range(0, len(sizes), AT_ONCE):
            chunk = sizes[start : start + AT_ONCE]
            self._progress("select", chunk[-1], total)
            for size, reached in zip(chunk, self._faithfulness(chunk), strict=True):
                if _fits(reached, target):
                    return self._refined(last_miss, size, target)
                last_miss = size
        return self._mask(total)

    def _refined(self, low: int, high: int, target: float) -> Bool[np.ndarray, "writer reader"]:
        """The smallest fitting size above `low` and up to `high`, among evenly spaced ones."""
        between = sorted({int(n) for n in np.linspace(low + 1, high, min(REFINEMENTS, high - low))} | {high})
        for size, reached in zip(between, self._faithfulness(between), strict=True):
            if _fits(reached, target):
                return self._mask(size)
        return self._mask(high)

    def _faithfulness(self, sizes: Sequence[int]) -> Float[np.ndarray, " size"]:
        masks = np.stack([self._mask(size) for size in sizes])
        values = circuit_values(self._model, self._prepared, masks, [self._metric], budget=self._budget)
        return (values[self._metric.name].mean(1) - self._empty) / self._gap

    def _mask(self, size: int) -> Bool[np.ndarray, "writer reader"]:
        return prune(mask_of(self._order[:size], self._scores.layout), self._scores.layout)


def _fits(faithfulness: float, target: float) -> bool:
    return bool(target <= faithfulness <= 2 - target + 1e-9)


def _growing(total: int) -> list[int]:
    sizes, size = [], 1.0
    while int(size) < total:
        if not sizes or int(size) > sizes[-1]:
            sizes.append(int(size))
        size = max(size * GROWTH, size + 1)
    return [*sizes, total]
