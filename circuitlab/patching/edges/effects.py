"""What edge patching gives back: one value per edge, column and example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitlab.parts import Edge
from circuitlab.patching.effects import Effects
from circuitlab.summary import largest, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeEffects(Effects):
    """Exact effects of edges, each patched alone.

    Columns of `to_frame`: source, target, position | span, (label), value, ci_low, ci_high, p_value, n.

    Attributes:
        edges: The edges, in the given order.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        column_kind: "position" or "span"; a single span "all" where whole messages were swapped.
        columns: Labels of the columns.
        per_example: How much the edge helps: m(clean) - m(clean with it corrupted), or m(corrupted with it clean) -
            m(corrupted); negated for metrics where less is better. NaN where an example lacks the span.
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

    def _labels(self) -> dict[str, Any]:
        n_columns = len(self.columns)
        numbers = range(n_columns) if self.numbers is None else self.numbers
        data: dict[str, Any] = {
            "source": [edge.source.name for edge in self.edges for _ in self.columns],
            "target": [edge.reader.name for edge in self.edges for _ in self.columns],
            self.column_kind: [*self.columns] * len(self.edges),
        }
        if self.column_kind == "position":
            data |= {"position": [*numbers] * len(self.edges), "label": data["position"]}
        return data

    def _summary(self) -> str:
        size = f"{plural(len(self.edges), 'edge')} x {plural(len(self.columns), self.column_kind or 'column')}"
        return f"by {self.direction}: {size}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        values = self.per_example.mean(-1)
        width = len(self.columns)
        yield "metric", self._ends
        yield from largest(
            values.ravel().tolist(),
            lambda number: self.edges[number // width].name + (f" {self.columns[number % width]}" if width > 1 else ""),
        )
