"""The tests of ACDC, run in batches with the outcomes of a sequential search.

The outcome of one test decides the circuit of the next. Outcomes are predicted: a batch runs the next k tests, each on
the circuit that follows from the predictions before it, and takes the outcomes up to and including the first that was
predicted wrongly; the search continues after it. The outcomes are therefore those of a sequential search, whatever the
predictions. Tests after a wrong prediction were run on a circuit that differs by one edge: their outcomes only serve as
predictions for the next batch.

The first predictions are the first-order effects of EAP, where the metric has a gradient in the clean run. One run with
several circuits may round differently from one with a single circuit, which can only change the outcome of an effect
within the last bits of the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.discovery.acdc_walk import Place, Walk
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.stats import standard_error

# Tests in the first batch, and at least in one after a wrong prediction.
FIRST_BATCH = 8
# The share of its tests by which a batch may end earlier or later, after an uncertain prediction.
SLACK = 0.5


@dataclass(slots=True, eq=False)
class Predictions:
    """Predicted effects of cutting edges; edges without a prediction are predicted to be cut.

    Attributes:
        threshold: Edges that cost less are cut.
    """

    threshold: float
    _above: dict[Place, float] = field(default_factory=dict)

    def learn(self, effects: Float[np.ndarray, "writer reader"]) -> None:
        """Predict these effects, except NaN."""
        for row, column in np.argwhere(~np.isnan(effects)).tolist():
            self.expect((row, column), float(effects[row, column]))

    def expect(self, edge: Place, effect: float) -> None:
        """Predict this effect of one edge."""
        self._above[edge] = effect - self.threshold

    def cut(self, edge: Place) -> bool:
        """Whether the edge is predicted to be cut.

        Returns:
            True if the predicted effect is below the threshold, or unknown.
        """
        return self._above.get(edge, -np.inf) < 0

    def uncertainty(self, edge: Place) -> float:
        """The uncertainty of a prediction: the larger, the less certain.

        Returns:
            Minus the distance of the predicted effect from the threshold.
        """
        return -abs(self._above.get(edge, -np.inf))


@dataclass(slots=True, eq=False)
class BatchSizes:
    """The number of tests in a batch: larger after correct predictions, smaller after wrong ones.

    Attributes:
        at_once: The number from which larger batches are no faster.
        fixed: A fixed number of tests instead.
    """

    at_once: int
    fixed: int | None
    _size: int = field(init=False)

    def __post_init__(self) -> None:
        self._size = min(FIRST_BATCH, self.at_once)

    def bounds(self) -> tuple[int, int]:
        """The bounds on the size of the next batch.

        Returns:
            Least and largest number of tests.
        """
        if self.fixed is not None:
            return self.fixed, self.fixed
        slack = int(SLACK * self._size)
        return self._size - slack, self._size + slack

    def note(self, n_asked: int, n_taken: int) -> None:
        """Record how many outcomes of a batch were taken."""
        grown = 2 * self._size if n_taken == n_asked else max(FIRST_BATCH, n_taken + 1)
        self._size = min(self.at_once, grown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of one test.

    Attributes:
        edge: Row and column of the edge in a mask.
        before: Mean cost of the circuit with the edge.
        after: Mean cost of the circuit without it.
        standard_error: Standard error of their difference over examples.
        cut: Whether the edge was cut: `after - before` was below the threshold.
    """

    edge: Place
    before: float
    after: float
    standard_error: float
    cut: bool

    @property
    def effect(self) -> float:
        """Rise of the cost by cutting the edge."""
        return self.after - self.before


@dataclass(slots=True, eq=False)
class Costs:
    """Costs of circuits on a data set: less is better.

    Attributes:
        experiment: The data set and its metric.
        silent_cuts: Whether edges that are cut untested can change a cost. Where cut edges carry the corrupted run they
            cannot, except through post-norms, by which the heads of a layer interact.
        whole: Cost of the whole model, by example.
    """

    experiment: Experiment
    silent_cuts: bool
    whole: Float[np.ndarray, " example"] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self._sign * self.experiment.clean

    @property
    def empty(self) -> Float[np.ndarray, " example"]:
        """Cost of the circuit without edges."""
        return self._sign * self.experiment.empty

    def of(self, masks: Sequence[Bool[np.ndarray, "writer reader"]]) -> Float[np.ndarray, "circuit example"]:
        """The costs of circuits on every example.

        Returns:
            One row a circuit.
        """
        return self._sign * self.experiment.values_from_clean(np.stack(masks))

    @property
    def _sign(self) -> float:
        return -1.0 if self.experiment.metric.higher_is_better else 1.0


def search(
    costs: Costs,
    layout: Layout,
    threshold: float,
    *,
    speculate: int | None = None,
    estimates: Float[np.ndarray, "writer reader"] | None = None,
) -> Search:
    """Test every edge.

    Args:
        costs: The costs of circuits.
        layout: Numbers of writers and readers.
        threshold: An edge is cut where the cost rises by less.
        speculate: Tests a batch; 1: one at a time; None: adapted to the number of correct predictions.
        estimates: First-order effects, for the first predictions; without them every edge is predicted to be cut.

    Returns:
        The finished search.
    """
    run = Search(costs, Walk.from_all(layout), Predictions(threshold))
    if estimates is not None:
        run.predictions.learn(estimates)
    sizes = BatchSizes(costs.experiment.circuits_at_once, speculate)
    while batch := run.look_ahead(*sizes.bounds()):
        sizes.note(len(batch), run.answer(batch))
    run.walk.question()  # cuts the rest
    return run


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A test of a batch; without an edge, the cost of edges that were cut untested.

    Attributes:
        edge: The edge to cut.
        mask: The circuit without it.
        cut: Whether the edge is predicted to be cut.
        uncertainty: Uncertainty of this prediction.
    """

    edge: Place | None
    mask: Bool[np.ndarray, "writer reader"]
    cut: bool
    uncertainty: float


class Search:
    """A search at one threshold.

    Attributes:
        predictions: The predicted outcomes, and the threshold.
        walk: The kept edges, and the place in the order of edges.
        answers: The outcomes of all tests, in order.
        batches: Number of batches that were run.
        circuits: Number of circuits that were run, including those whose outcome was discarded.
    """

    def __init__(self, costs: Costs, walk: Walk, predictions: Predictions) -> None:
        self.predictions, self.walk, self.answers = predictions, walk, list[Answer]()
        self.batches = self.circuits = 0
        self._costs, self._current = costs, costs.whole

    @property
    def threshold(self) -> float:
        """Rise of the cost from which an edge is kept."""
        return self.predictions.threshold

    @property
    def mask(self) -> Bool[np.ndarray, "writer reader"]:
        """The kept edges."""
        return self.walk.mask

    @property
    def cost(self) -> float:
        """Mean cost of the kept edges."""
        return float(self._current.mean())

    def look_ahead(self, least: int, most: int) -> list[_Question]:
        """The next tests, each on the circuit that follows from the predictions before it.

        Args:
            least: Least number of tests.
            most: Largest number; the batch ends at the least certain prediction in between.

        Returns:
            The tests; none at the end of the search.
        """
        ahead, found = self.walk.copy(), list[_Question]()
        while len(found) < most:
            edge = ahead.question()
            if ahead.cut_unasked and self._costs.silent_cuts:
                found.append(_Question(None, ahead.mask.copy(), cut=True, uncertainty=-np.inf))
            ahead.cut_unasked = False
            if edge is None:
                return found
            cut = self.predictions.cut(edge)
            found.append(_Question(edge, ahead.without(edge), cut, self.predictions.uncertainty(edge)))
            ahead.answer(edge, cut)
        return found[: max(range(least, len(found) + 1), key=lambda n: found[n - 1].uncertainty)]

    def answer(self, batch: Sequence[_Question]) -> int:
        """Run a batch; take the outcomes up to the first wrong prediction, and predict the others by theirs.

        Returns:
            The number of outcomes that were taken.
        """
        costs = self._costs.of([one.mask for one in batch])
        self.batches, self.circuits = self.batches + 1, self.circuits + len(batch)
        current, right = self._current, True
        taken = 0
        for one, cost in zip(batch, costs, strict=True):
            rise = float((cost - current).mean())
            cut = one.edge is None or rise < self.threshold
            if right:
                self._take(one, cost, cut)
                taken += 1
            elif one.edge is not None:
                self.predictions.expect(one.edge, rise)
            # The next circuit is the predicted one, right or wrong.
            right = right and cut == one.cut
            current = cost if one.cut else current
        self._costs.experiment.progress("acdc", self.walk.at, len(self.walk.steps))
        return taken

    def _take(self, one: _Question, cost: Float[np.ndarray, " example"], cut: bool) -> None:
        edge = self.walk.question()
        self.walk.cut_unasked = False
        if one.edge is not None:
            assert edge == one.edge
            change = cost - self._current
            before, after = float(self._current.mean()), float(cost.mean())
            error = float(standard_error(change, 0.0))
            self.answers.append(Answer(edge=one.edge, before=before, after=after, standard_error=error, cut=cut))
            self.walk.answer(one.edge, cut)
        if cut:
            self._current = cost
