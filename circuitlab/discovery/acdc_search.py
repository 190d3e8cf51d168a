"""ACDC's questions, asked several at a time and answered as if they had been asked one after the other.

An answer to one question decides the circuit that the next is asked about. But answers can be predicted: a batch asks
the next k questions, each as if those before it had been answered as predicted, and keeps the answers up to the first
that is not the predicted one; that answer counts too, and the search goes on after it. So whatever the predictions, the
answers are those of the search one question at a time. Questions after a wrong prediction were asked about a circuit
that differs by one edge: their answers are thrown away, but are the predictions of the next batch.

The first predictions are the first-order effects of EAP, where the metric has a gradient in the clean run. One run with
several circuits may round differently from one with a single circuit: an effect within the last bits of the threshold
is the one thing that could fall otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.discovery.acdc_predictions import BatchSizes, Predictions
from circuitlab.discovery.acdc_walk import Place, Walk
from circuitlab.parts import Layout
from circuitlab.patching.circuit_values import CircuitValues
from circuitlab.stats import standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question and what came of it.

    Attributes:
        edge: Row and column of the edge in a mask.
        before: Mean cost of the circuit that it was asked about.
        after: Mean cost of that circuit without the edge.
        standard_error: Of their difference over examples.
        cut: Whether the edge was cut: `after - before` was below the threshold.
    """

    edge: Place
    before: float
    after: float
    standard_error: float
    cut: bool

    @property
    def effect(self) -> float:
        """How much cutting the edge cost."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """One search from its beginning to its end.

    Attributes:
        threshold: What an edge has to be worth to be kept.
        mask: The edges that were kept.
        answers: Every question in the order it was asked.
        cost: Mean cost of what was kept.
        batches: How many batches of questions were run.
        circuits: How many circuits were run in them, those whose answers were thrown away included.
    """

    threshold: float
    mask: Bool[np.ndarray, "writer reader"]
    answers: tuple[Answer, ...]
    cost: float
    batches: int
    circuits: int


@dataclass(slots=True, eq=False)
class Costs:
    """What circuits cost on a data set: less is better.

    Attributes:
        values: The data set and its metric.
        silent_cuts: Whether edges that are cut without a question can change a cost. Where cut edges carry the
            corrupted run they cannot, but for post-norms, through which the heads of a layer interact.
        whole: Cost of the whole model, by example.
    """

    values: CircuitValues
    silent_cuts: bool
    whole: Float[np.ndarray, " example"] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self._sign * self.values.experiment.clean

    @property
    def empty(self) -> Float[np.ndarray, " example"]:
        """Cost of the circuit without edges."""
        return self._sign * self.values.experiment.empty

    def of(self, masks: Sequence[Bool[np.ndarray, "writer reader"]]) -> Float[np.ndarray, "circuit example"]:
        """Cost of every circuit on every example."""
        return self._sign * self.values.of(np.stack(masks))

    @property
    def _sign(self) -> float:
        return -1.0 if self.values.metric.higher_is_better else 1.0


def search(
    costs: Costs,
    layout: Layout,
    threshold: float,
    *,
    speculate: int | None = None,
    estimates: Float[np.ndarray, "writer reader"] | None = None,
) -> Search:
    """Ask about every edge.

    Args:
        costs: What is asked.
        layout: Numbers of writers and readers.
        threshold: An edge is cut where this costs less than the threshold.
        speculate: Questions a batch; 1: one at a time; None: as many as come true.
        estimates: First-order effects, for the first predictions; without them every edge is predicted to be cut.
    """
    run = _Run(costs, Walk.from_all(layout), Predictions(threshold))
    if estimates is not None:
        run.predictions.learn(estimates)
    sizes = BatchSizes(costs.values.at_once, speculate)
    while True:
        asked = run.look_ahead(*sizes.bounds())
        if not asked:
            return run.result()
        sizes.note(len(asked), run.answer(asked))


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A question of a batch; without an edge, what edges cost that were cut unasked.

    Attributes:
        edge: What is asked about.
        mask: The circuit that is run for it.
        cut: Whether the edge is predicted to be cut.
        uncertainty: Of this prediction.
    """

    edge: Place | None
    mask: Bool[np.ndarray, "writer reader"]
    cut: bool
    uncertainty: float


class _Run:
    """A search on its way."""

    def __init__(self, costs: Costs, walk: Walk, predictions: Predictions) -> None:
        self.predictions = predictions
        self._costs, self._walk = costs, walk
        self._current = costs.whole
        self._answers = list[Answer]()
        self._batches = self._circuits = 0

    def look_ahead(self, least: int, most: int) -> list[_Asked]:
        """The next questions, each as if the ones before it were answered as predicted.

        So many at most, and at least as many, up to the least certain prediction; none at the end.
        """
        ahead, found = self._walk.copy(), list[_Asked]()
        while len(found) < most:
            edge = ahead.question()
            if ahead.cut_unasked and self._costs.silent_cuts:
                found.append(_Asked(None, ahead.mask.copy(), cut=True, uncertainty=-np.inf))
            ahead.cut_unasked = False
            if edge is None:
                return found
            cut = self.predictions.cut(edge)
            found.append(_Asked(edge, ahead.without(edge), cut, self.predictions.uncertainty(edge)))
            ahead.answer(edge, cut)
        return found[: max(range(least, len(found) + 1), key=lambda n: found[n - 1].uncertainty)]

    def answer(self, asked: Sequence[_Asked]) -> int:
        """Ask, take the answers up to the first wrong prediction and remember the others; how many were taken."""
        costs = self._costs.of([one.mask for one in asked])
        self._batches, self._circuits = self._batches + 1, self._circuits + len(asked)
        current, right = self._current, True
        taken = 0
        for one, cost in zip(asked, costs, strict=True):
            cut = one.edge is None or bool((cost - current).mean() < self.predictions.threshold)
            if right:
                self._take(one, cost, cut)
                taken += 1
            elif one.edge is not None:
                self.predictions.expect(one.edge, float((cost - current).mean()))
            # The next circuit is the one that was predicted, right or wrong.
            right = right and cut == one.cut
            current = cost if one.cut else current
        self._costs.values.experiment.progress("acdc", self._walk.at, len(self._walk.steps))
        return taken

    def _take(self, one: _Asked, cost: Float[np.ndarray, " example"], cut: bool) -> None:
        edge = self._walk.question()
        self._walk.cut_unasked = False
        if one.edge is not None:
            assert edge is not None
            assert edge == one.edge
            change = cost - self._current
            error = float(standard_error(change, 0.0))
            before, after = float(self._current.mean()), float(cost.mean())
            self._answers.append(Answer(edge=edge, before=before, after=after, standard_error=error, cut=cut))
            self._walk.answer(edge, cut)
        if cut:
            self._current = cost

    def result(self) -> Search:
        """What was found, at the end of the way."""
        self._walk.question()
        return Search(
            threshold=self.predictions.threshold,
            mask=self._walk.mask,
            answers=tuple(self._answers),
            cost=float(self._current.mean()),
            batches=self._batches,
            circuits=self._circuits,
        )
