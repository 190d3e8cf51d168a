"""What ACDC predicts of its next questions, and how many it asks at once on the strength of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from circuitlab.discovery.acdc_walk import Place

# Questions in the first batch, and at least in one after a wrong prediction.
FIRST_BATCH = 8
# By what share of its questions a batch may end earlier or later than the others, after an uncertain prediction.
SLACK = 0.5


@dataclass(slots=True, eq=False)
class Predictions:
    """What cutting edges is predicted to cost; edges of which nothing is known are predicted to be cut.

    Attributes:
        threshold: Edges that cost less are cut.
    """

    threshold: float
    _above: dict[Place, float] = field(default_factory=dict)

    def learn(self, effects: Float[np.ndarray, "writer reader"]) -> None:
        """Predict these effects; nothing is learnt where they are NaN."""
        for row, column in np.argwhere(~np.isnan(effects)).tolist():
            self.expect((row, column), float(effects[row, column]))

    def expect(self, edge: Place, effect: float) -> None:
        """Predict this effect of one edge."""
        self._above[edge] = effect - self.threshold

    def cut(self, edge: Place) -> bool:
        """Whether the edge is predicted to be cut."""
        return self._above.get(edge, -np.inf) < 0

    def uncertainty(self, edge: Place) -> float:
        """How near to the threshold the prediction is, with a minus: the larger, the less certain."""
        return -abs(self._above.get(edge, -np.inf))


@dataclass(slots=True, eq=False)
class BatchSizes:
    """How many questions to ask at once: more while predictions come true, fewer where they do not.

    Attributes:
        at_once: How many are as quick as they get.
        fixed: As many every time, whatever comes of them.
    """

    at_once: int
    fixed: int | None
    _size: int = field(init=False)

    def __post_init__(self) -> None:
        self._size = min(FIRST_BATCH, self.at_once)

    def bounds(self) -> tuple[int, int]:
        """How many questions the next batch has, at least and at most."""
        if self.fixed is not None:
            return self.fixed, self.fixed
        slack = int(SLACK * self._size)
        return self._size - slack, self._size + slack

    def note(self, n_asked: int, n_taken: int) -> None:
        """Take note of how many answers of a batch were taken."""
        grown = 2 * self._size if n_taken == n_asked else max(FIRST_BATCH, n_taken + 1)
        self._size = min(self.at_once, grown)
