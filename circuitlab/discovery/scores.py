"""What every scoring method gives back: one score per edge, with its error measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places, mask_of, ranked_edges
from circuitlab.parts import Layout, ModelSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeScores:
    """Scores of every edge of one model.

    Attributes:
        spec: The model's shape.
        values: Mean over examples, in the metric's unit: m(clean) - m(with the edge corrupted), exactly or estimated.
            Positive: the edge helps. 0 where there is no edge.
        standard_error: Of `values` over examples.
        method: Name of the method.
        metric: Name of the metric.
        n_examples: How many examples the means are over.
        checks: The method's own error measures, by name.
        node_effects: Node name -> effect of patching the node alone, for methods that score nodes.
        chosen: The method's own circuit, for methods that choose edges and not only score them.
        training: What a method that learns was doing, column by column, one entry for every step that was noted.
    """

    spec: ModelSpec
    values: Float[np.ndarray, "writer reader"]
    standard_error: Float[np.ndarray, "writer reader"]
    method: str
    metric: str
    n_examples: int
    checks: Mapping[str, float] = field(default_factory=dict)
    node_effects: Mapping[str, float] = field(default_factory=dict)
    chosen: Bool[np.ndarray, "writer reader"] | None = None
    training: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Numbers of writers and readers."""
        return Layout.of(self.spec)

    def ranked(self, signed: bool = False) -> np.ndarray:
        """Every edge as (row, column), best first; ties stand in the order of `Layout.edges`.

        Args:
            signed: Rank by score; else by its absolute value.
        """
        return ranked_edges(self.values if signed else np.abs(self.values), self.layout)

    def top(self, n: int, signed: bool = False) -> Bool[np.ndarray, "writer reader"]:
        """Mask of the `n` best edges, exactly that many, not pruned."""
        return mask_of(self.ranked(signed)[: max(0, n)], self.layout)

    def circuit(self, mask: Bool[np.ndarray, "writer reader"]) -> Circuit:
        """A circuit with these scores and this mask."""
        return Circuit(spec=self.spec, mask=mask, scores=self.values, node_effects=self.node_effects)

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: source, target, score, standard_error, in the order of `Layout.edges`."""
        import pandas as pd

        rows, columns = edge_places(self.layout).T
        edges = list(self.layout.edges())
        return pd.DataFrame(
            {
                "source": [edge.source.name for edge in edges],
                "target": [edge.reader.name for edge in edges],
                "score": self.values[rows, columns],
                "standard_error": self.standard_error[rows, columns],
            }
        )

    def training_frame(self) -> pd.DataFrame:
        """One row a step, counted from 1: step and the columns of `training`."""
        import pandas as pd

        frame = pd.DataFrame(dict(self.training))
        frame.insert(0, "step", range(1, len(frame) + 1))
        return frame


class RunningMean:
    """Mean and standard error over examples that come in batches."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._real = real_edges(layout)
        self._n = 0
        self._sum = np.zeros(self._real.shape)
        self._squares = np.zeros(self._real.shape)

    def add(self, values: Float[np.ndarray, "batch writer reader"]) -> None:
        """Take in one batch."""
        values = values * self._real
        self._n += len(values)
        self._sum += values.sum(0)
        self._squares += (values**2).sum(0)

    @property
    def mean(self) -> Float[np.ndarray, "writer reader"]:
        """Mean over all examples so far."""
        return self._sum / self._n

    @property
    def standard_error(self) -> Float[np.ndarray, "writer reader"]:
        """Standard error of the mean; 0 for a single example."""
        if self._n < 2:
            return np.zeros_like(self._sum)
        variance = (self._squares - self._n * self.mean**2) / (self._n - 1)
        return np.sqrt(np.maximum(0.0, variance) / self._n)
