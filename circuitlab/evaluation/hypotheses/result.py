"""What every hypothesis test gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from circuitlab import stats
from circuitlab.parts import Edge
from circuitlab.summary import Summary, largest, plural

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TestResult(Summary):
    """One test of one hypothesis about a circuit.

    Attributes:
        name: Of the test.
        null: The null hypothesis, in words.
        statistic: What was measured.
        p_value: How probable such a statistic, or one farther out, is under the null hypothesis.
        rejected: Whether p is below 0.05.
        good: Whether the outcome speaks for the circuit: a null hypothesis that says that the circuit is as wished is
            not rejected, or one that says it is no better than chance is.
        n: How many examples or random circuits the test rests on.
        least_p: The smallest p-value that so many could give; at or above 0.05 the test cannot reject at all.
        details: Whatever else was measured, by name.
    """

    __test__ = False  # for pytest: no test of this library's

    name: str
    null: str
    statistic: float
    p_value: float
    rejected: bool
    good: bool
    n: int
    least_p: float
    details: Mapping[str, float] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """The result as plain values."""
        names = ("name", "null", "statistic", "p_value", "rejected", "good", "n", "least_p")
        return {**{name: getattr(self, name) for name in names}, "details": dict(self.details)}

    def _summary(self) -> str:
        return f"{self.name}: p = {self.p_value:.3g}, {'rejected' if self.rejected else 'not rejected'}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeTests(Summary):
    """One test an edge, corrected for their number.

    Attributes:
        edges: The edges, in the order of `Layout.edges`.
        effect: What knocking each out changes.
        beats: Share of the random edges that change less.
        p_value: Of each edge alone.
        p_corrected: After the correction.
        correction: "holm" or "bonferroni".
    """

    edges: tuple[Edge, ...]
    effect: Float[np.ndarray, " edge"]
    beats: Float[np.ndarray, " edge"]
    p_value: Float[np.ndarray, " edge"]
    p_corrected: Float[np.ndarray, " edge"]
    correction: str

    @property
    def rejected(self) -> Bool[np.ndarray, " edge"]:
        """Edges whose corrected p-value is below 0.05."""
        return self.p_corrected < LEVEL

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: edge, effect, beats, p_value, p_corrected, rejected."""
        import pandas as pd

        names = [edge.name for edge in self.edges]
        columns = {name: getattr(self, name) for name in ("effect", "beats", "p_value", "p_corrected", "rejected")}
        return pd.DataFrame({"edge": names, **columns})

    def _summary(self) -> str:
        return f"of {plural(len(self.edges), 'edge')}: {int(self.rejected.sum()):,} rejected"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "correction", self.correction
        yield from largest(self.effect, lambda number: self.edges[number].name, label="largest effect")


def corrected(p_values: Float[np.ndarray, " test"], correction: str) -> Float[np.ndarray, " test"]:
    """p-values corrected for their number, so that the chance of any false rejection stays at 5 %.

    Args:
        p_values: Of the single tests.
        correction: "holm", or "bonferroni", which is Holm's with the factor of the smallest for all.
    """
    if not len(p_values):
        return p_values
    return stats.holm(p_values) if correction == "holm" else np.minimum(1.0, p_values * len(p_values))
