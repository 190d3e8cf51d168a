"""ACDC's questions, asked several at a time and answered as if they had been asked one after the other.

An answer to one question decides the circuit that the next is asked about. But answers can be guessed: a batch asks the
next k questions, each as if those before it had been answered as guessed, and keeps the answers up to the first that is
not the guessed one; that answer counts too, and the search goes on behind it. So whatever the guesses, the answers are
those of the search one question at a time. Questions behind a wrong guess were asked about a circuit that differs by
one edge: their answers are thrown away, but are the guesses of the next batch.

Guesses come from gradients (`CutValues.worth`): when the search comes to a layer, nothing that enters it is cut yet,
and the circuit behind it is decided, so that a backward pass through that circuit says what each of its edges is worth,
to first order. One run with several circuits may round differently from one with a single circuit: an effect within the
last bits of the threshold is the one thing that could fall otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.discovery.acdc_guesses import Guesses, Sizes
from circuitlab.discovery.acdc_walk import Place, Walk
from circuitlab.parts import Layout
from circuitlab.patching.cuts.values import CutValues
from circuitlab.progress import Progress, silent
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
            corrupted run they cannot, but for norms behind the heads, which couple those of a layer.
        whole: Cost of the whole model, by example.
    """

    values: CutValues
    silent_cuts: bool
    whole: Float[np.ndarray, " example"] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self._sign * self.values.prepared.gaps(self.values.metric)[0]

    @property
    def empty(self) -> Float[np.ndarray, " example"]:
        """Cost of the circuit without edges."""
        return self._sign * self.values.prepared.gaps(self.values.metric)[1]

    def of(self, masks: Sequence[Bool[np.ndarray, "writer reader"]]) -> Float[np.ndarray, "circuit example"]:
        """Cost of every circuit on every example."""
        return self._sign * self.values.of(np.stack(masks))

    def worth(self, layer: int) -> Float[np.ndarray, "writer reader"]:
        """What cutting edges into a layer costs, to first order; NaN for all others."""
        return self._sign * self.values.worth(layer)

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
    refined: bool = False,
    progress: Progress = silent,
) -> Search:
    """Ask about every edge.

    Args:
        costs: What is asked.
        layout: Numbers of writers and readers.
        threshold: An edge is cut where this costs less than the threshold.
        speculate: Questions a batch; 1: one at a time; None: as many as come true.
        estimates: What each edge may be worth, for the first guesses; without them every edge is expected to be cut.
        refined: Guess about the edges into a layer when it is their turn, by a gradient in the circuit that is left.
        progress: Called with (step, steps done, all steps).
    """
    run = _Run(costs, Walk.from_all(layout), Guesses(threshold), progress)
    if estimates is not None:
        run.guesses.learn(estimates)
    at_once, most = costs.values.at_once
    sizes = Sizes(at_once, most, refined, speculate)
    while True:
        if refined:
            run.refine()
        asked = run.look_ahead(*sizes.bounds(run.left()))
        if not asked:
            return run.result()
        sizes.note(len(asked), run.answer(asked))


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A question of a batch; without an edge, what edges cost that were cut unasked.

    Attributes:
        edge: What is asked about.
        mask: The circuit that is run for it.
        guess: Whether the edge is expected to be cut.
        doubt: How much that is in doubt.
    """

    edge: Place | None
    mask: Bool[np.ndarray, "writer reader"]
    guess: bool
    doubt: float


class _Run:
    """A search on its way."""

    def __init__(self, costs: Costs, walk: Walk, guesses: Guesses, progress: Progress) -> None:
        self.guesses = guesses
        self._costs, self._walk, self._progress = costs, walk, progress
        self._current = costs.whole
        self._answers = list[Answer]()
        self._batches = self._circuits = 0
        # The layer that guesses were refined for: batches end with it.
        self._refined: int | None = None

    def refine(self) -> None:
        """Guess about the edges into a layer's readers by a gradient, where the search has come to it."""
        ahead = self._walk.copy()
        edge = ahead.question()
        if edge is not None and self._layer_of(edge) != self._refined:
            self._refined = self._layer_of(edge)
            self._costs.values.begin(ahead.mask)
            self.guesses.learn(self._costs.worth(self._refined))

    def left(self) -> int:
        """How many questions there are left, at most; with `refine` in its layer."""
        edges = [step.edge for step in self._walk.steps[self._walk.at :] if step.edge is not None]
        return sum(not self._is_beyond(edge) for edge in edges)

    def look_ahead(self, least: int, most: int) -> list[_Asked]:
        """The next questions, each as if the ones before it were answered as guessed.

        So many at most, and at least as many, up to the guess that is most in doubt; none at the end.
        """
        ahead, found = self._walk.copy(), list[_Asked]()
        while len(found) < most:
            edge = ahead.question()
            if edge is not None and self._is_beyond(edge):
                return found
            if ahead.cut_unasked and self._costs.silent_cuts:
                found.append(_Asked(None, ahead.mask.copy(), guess=True, doubt=-np.inf))
            ahead.cut_unasked = False
            if edge is None:
                return found
            guess = self.guesses.cut(edge)
            found.append(_Asked(edge, ahead.without(edge), guess, self.guesses.doubt(edge)))
            ahead.answer(edge, guess)
        return found[: max(range(least, len(found) + 1), key=lambda n: found[n - 1].doubt)]

    def answer(self, asked: Sequence[_Asked]) -> int:
        """Ask, take the answers up to the first wrong guess and remember the others; how many were taken."""
        costs = self._costs.of([one.mask for one in asked])
        self._batches, self._circuits = self._batches + 1, self._circuits + len(asked)
        current, right = self._current, True
        taken = 0
        for one, cost in zip(asked, costs, strict=True):
            cut = one.edge is None or bool((cost - current).mean() < self.guesses.threshold)
            if right:
                self._take(one, cost, cut)
                taken += 1
            elif one.edge is not None:
                self.guesses.expect(one.edge, float((cost - current).mean()))
            # The circuit behind is the one that was guessed, right or wrong.
            right = right and cut == one.guess
            current = cost if one.guess else current
        self._progress("acdc", self._walk.at, len(self._walk.steps))
        return taken

    def _layer_of(self, edge: Place) -> int:
        """The layer that an edge enters; the logits stand behind the last one."""
        layer = self._walk.layout.readers[edge[1]].node.layer
        return self._walk.layout.spec.n_layers if layer is None else layer

    def _is_beyond(self, edge: Place) -> bool:
        """Whether an edge enters another layer than that which guesses were refined for, if they were."""
        return self._refined is not None and self._layer_of(edge) != self._refined

    def _take(self, one: _Asked, cost: Float[np.ndarray, " example"], cut: bool) -> None:
        edge = self._walk.question()
        self._walk.cut_unasked = False
        if one.edge is not None:
            assert edge is not None
            assert edge == one.edge
            change = cost - self._current
            error = standard_error(change) if len(change) > 1 else 0.0
            before, after = float(self._current.mean()), float(cost.mean())
            self._answers.append(Answer(edge=edge, before=before, after=after, standard_error=error, cut=cut))
            self._walk.answer(edge, cut)
        if cut:
            self._current = cost

    def result(self) -> Search:
        """What was found, at the end of the way."""
        self._walk.question()
        return Search(
            threshold=self.guesses.threshold,
            mask=self._walk.mask,
            answers=tuple(self._answers),
            cost=float(self._current.mean()),
            batches=self._batches,
            circuits=self._circuits,
        )
