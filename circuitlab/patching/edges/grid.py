"""What edge patching gives back: one value per edge, column and example, and everything that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from circuitlab import stats
from circuitlab.errors import UnknownNameError
from circuitlab.parts import Edge
from circuitlab.patching.grid import CORRECTIONS, FRAME_COLUMNS
from circuitlab.summary import Summary, largest, plural

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeEffects(Summary):
    """Exact effects of edges, each patched alone.

    Attributes:
        edges: The edges, in the order they were asked for.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        column_kind: "position" or "span"; a single span "all" where whole messages were swapped.
        columns: Labels of the columns.
        per_example: How much the edge helps: m(clean) - m(clean with it corrupted), or m(corrupted with it clean) -
            m(corrupted); turned for metrics where less is better. NaN where an example lacks the span.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        seed: Seed of intervals and p-values.
        numbers: Positions of the columns, where only some were patched.
    """

    edges: tuple[Edge, ...]
    direction: str
    metric: str
    unit: str
    column_kind: str
    columns: tuple[str, ...]
    per_example: Float[np.ndarray, "edge column example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    seed: int = 0
    numbers: tuple[int, ...] | None = None

    @property
    def values(self) -> Float[np.ndarray, "edge column"]:
        """Mean over the examples that have the column, in the metric's unit; positive: the edge helps."""
        return stats.ratio_of_means(self._filled, self._there.astype(float))

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        return stats.ratio_interval(self._filled, self._there.astype(float), self.seed)

    @property
    def p_values(self) -> Float[np.ndarray, "edge column"]:
        """Two-sided sign-flip p-values of "the edge does nothing", not corrected for their number."""
        return stats.sign_flip_p(self._filled, self.seed)

    def corrected_p_values(self, correction: str = "holm") -> Float[np.ndarray, "edge column"]:
        """`p_values` corrected for the number of edges and columns: "holm" or "benjamini-hochberg".

        Raises:
            UnknownNameError: No such correction.
        """
        if correction not in CORRECTIONS:
            raise UnknownNameError.of("correction", correction, CORRECTIONS)
        return CORRECTIONS[correction](self.p_values)

    @property
    def n(self) -> Int[np.ndarray, "edge column"]:
        """How many examples each value speaks of."""
        return self._there.sum(-1)

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """One row an edge and column: source, target, position | span, (label), value, ci_low, ci_high, p_value, n.

        With a correction (see `corrected_p_values`), `p_value` is the corrected one.
        """
        import pandas as pd

        n_edges, n_columns = self.per_example.shape[:2]
        edge, column = np.divmod(np.arange(n_edges * n_columns), n_columns)
        data: dict[str, Any] = {
            "source": [self.edges[i].source.name for i in edge],
            "target": [self.edges[i].reader.name for i in edge],
        }
        if self.column_kind == "position":
            numbers = range(n_columns) if self.numbers is None else self.numbers
            data["position"] = [numbers[i] for i in column]
            data["label"] = [self.columns[i] for i in column]
        else:
            data[self.column_kind] = [self.columns[i] for i in column]
        interval = self.interval
        p_values = self.p_values if correction is None else self.corrected_p_values(correction)
        numbers = (self.values, interval.low, interval.high, p_values, self.n)
        data.update({name: cell.ravel() for name, cell in zip(FRAME_COLUMNS, numbers, strict=True)})
        return pd.DataFrame(data)

    @property
    def _there(self) -> np.ndarray:
        return ~np.isnan(self.per_example)

    @property
    def _filled(self) -> np.ndarray:
        return np.where(self._there, self.per_example, 0.0)

    def _summary(self) -> str:
        size = f"{plural(len(self.edges), 'edge')} x {plural(len(self.columns), self.column_kind or 'column')}"
        return f"by {self.direction}: {size}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        values = self.per_example.mean(-1)
        width = len(self.columns)
        yield "metric", f"{self.metric}: clean {self.clean.mean():.4g}, corrupted {self.corrupt.mean():.4g}"
        yield from largest(
            values.ravel().tolist(),
            lambda number: self.edges[number // width].name + (f" {self.columns[number % width]}" if width > 1 else ""),
        )
