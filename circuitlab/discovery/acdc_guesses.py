"""What ACDC expects of its next questions, and how many it asks at once on the strength of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from circuitlab.discovery.acdc_walk import Place

# Questions in the first batch, and at least in one behind a wrong guess: where guesses are made once, and where they
# are refined on the way, so that most come true.
FIRST_BATCH, REFINED_BATCH = 4, 16
# By what share of its questions a batch may end earlier or later than the others, behind a guess that is in doubt.
SLACK = 0.25


@dataclass(slots=True, eq=False)
class Guesses:
    """How much edges are expected to be worth; those of which nothing is known are expected to be cut.

    Attributes:
        threshold: What an edge has to be worth to be kept.
    """

    threshold: float
    _above: dict[Place, float] = field(default_factory=dict)

    def learn(self, estimates: Float[np.ndarray, "writer reader"]) -> None:
        """Expect these effects; nothing is learnt where they are NaN."""
        for row, column in np.argwhere(~np.isnan(estimates)).tolist():
            self.expect((row, column), float(estimates[row, column]))

    def expect(self, edge: Place, effect: float) -> None:
        """Expect this effect of one edge."""
        self._above[edge] = effect - self.threshold

    def cut(self, edge: Place) -> bool:
        """Whether the edge is expected to be cut."""
        return self._above.get(edge, -np.inf) < 0

    def doubt(self, edge: Place) -> float:
        """The larger, the more the guess is in doubt: how near to the threshold it is, with a minus."""
        return -abs(self._above.get(edge, -np.inf))


@dataclass(slots=True, eq=False)
class Sizes:
    """How many questions to ask at once: more while guesses come true, fewer where they do not.

    Attributes:
        at_once: How many are as quick as they get.
        most: How many there may be.
        refined: Whether guesses are refined on the way; then batches share out what is left of a layer, and end behind
            a guess in doubt.
        fixed: As many every time, whatever comes of them.
    """

    at_once: int
    most: int
    refined: bool
    fixed: int | None
    _size: int = field(init=False)

    def __post_init__(self) -> None:
        self._size = min(self._least, self.at_once)

    @property
    def _least(self) -> int:
        return REFINED_BATCH if self.refined else FIRST_BATCH

    def bounds(self, n_left: int) -> tuple[int, int]:
        """How many questions the next batch has, at least and at most, with so many left in the layer."""
        if self.fixed is not None:
            return self.fixed, self.fixed
        if not self.refined:
            return self._size, self._size
        size = evenly(n_left, self._size, max(self._size, self.most))
        slack = int(SLACK * size) if size < n_left else 0
        return size - slack, size + slack

    def note(self, n_asked: int, n_taken: int) -> None:
        """Take note of how many answers of a batch were taken."""
        self._size = min(self.at_once, 2 * self._size if n_taken == n_asked else max(self._least, n_taken + 1))


def evenly(n_questions: int, at_once: int, most: int) -> int:
    """How many a batch, for batches of one size: as near to `at_once` as may be, and not above `most`.

    Example:
        >>> evenly(17, 16, 24), evenly(17, 16, 16), evenly(82, 16, 24), evenly(3, 16, 24)
        (17, 9, 17, 3)
    """
    n_batches = max(1, round(n_questions / at_once), -(-n_questions // most))
    return max(1, -(-n_questions // n_batches))
