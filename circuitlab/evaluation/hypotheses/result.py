"""Results of the hypothesis tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuitlab import stats
from circuitlab.parts import Edge
from circuitlab.result import Result, named
from circuitlab.summary import Summary, largest, plural

LEVEL = 0.05
QUANTILE = 0.9
RECORDED = ("null", "statistic", "p_value", "rejected", "good", "n", "least_p")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TestResult(Summary):
    """One test of one hypothesis about a circuit.

    Attributes:
        name: Name of the test.
        null: The null hypothesis, in words.
        statistic: The test statistic.
        p_value: Probability of the statistic, or a more extreme one, under the null hypothesis.
        n: Number of examples or random circuits of the test.
        least_p: The smallest p-value that is possible with `n`; at or above 0.05 the test cannot reject.
        for_if_rejected: Whether rejection supports the circuit: the null hypothesis is that it is no better than
            chance. Otherwise the null hypothesis is that the circuit has the property.
        details: Further measured values, by name.
    """

    __test__ = False  # for pytest: no test of this library's

    name: str
    null: str
    statistic: float
    p_value: float
    n: int
    least_p: float
    for_if_rejected: bool = False
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether p is below 0.05."""
        return self.p_value < LEVEL

    @property
    def good(self) -> bool:
        """Whether the outcome supports the circuit."""
        return self.rejected == self.for_if_rejected

    def to_record(self) -> dict[str, Any]:
        """The result as plain values.

        Returns:
            The record.
        """
        return {**named(self, "name", *RECORDED), "details": dict(self.details)}

    def _summary(self) -> str:
        return f"{self.name}: p = {self.p_value:.3g}, {'rejected' if self.rejected else 'not rejected'}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeTests(Result):
    """One test an edge, corrected for their number.

    Attributes:
        edges: The edges, in the order of `Layout.edges`.
        effect: Change by knocking out each edge.
        beats: Share of the random edges with a smaller effect.
        p_value: p-value of each edge alone.
        p_corrected: p-value after the correction.
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
        """One row an edge: edge, effect, beats, p_value, p_corrected, rejected.

        Returns:
            The table.
        """
        names = [edge.name for edge in self.edges]
        columns = named(self, "effect", "beats", "p_value", "p_corrected", "rejected")
        return pd.DataFrame({"edge": names, **columns})

    def _summary(self) -> str:
        return f"of {plural(len(self.edges), 'edge')}: {int(self.rejected.sum()):,} rejected"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "correction", self.correction
        yield from largest(self.effect, lambda number: self.edges[number].name, label="largest effect")


def corrected(p_values: Float[np.ndarray, " test"], correction: str) -> Float[np.ndarray, " test"]:
    """p-values corrected for their number, which keeps the chance of any false rejection at 5 %.

    Args:
        p_values: The p-values of the single tests.
        correction: "holm" or "bonferroni".

    Returns:
        The corrected p-values.
    """
    if not len(p_values):
        return p_values
    return stats.holm(p_values) if correction == "holm" else np.minimum(1.0, p_values * len(p_values))
