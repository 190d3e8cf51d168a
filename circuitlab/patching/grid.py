"""What a sweep gives back: one value per cell and example, and everything that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from circuitlab import late, stats

if TYPE_CHECKING:
    import pandas as pd

FRAME_COLUMNS = ("value", "ci_low", "ci_high", "p_value", "n")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """A swept site: layers by positions, spans or heads.

    Attributes:
        site: Which site.
        direction: "denoise": clean values into the corrupted run; "noise": the other way round.
        metric: Name of the metric.
        unit: Its unit.
        column_kind: "position", "span" or "head".
        columns: Labels of the columns.
        per_example: Raw metric with the cell patched; NaN where an example lacks the span.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        normalised: Whether `values` are on the scale 0 = corrupted, 1 = clean; else in the metric's unit.
        seed: Seed of intervals and p-values.
    """

    site: str
    direction: str
    metric: str
    unit: str
    column_kind: str
    columns: tuple[str, ...]
    per_example: Float[np.ndarray, "layer column example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    normalised: bool = True
    seed: int = 0

    @property
    def values(self) -> Float[np.ndarray, "layer column"]:
        """Mean over examples; normalised: 0 = corrupted, 1 = clean, means first and then their ratio."""
        return stats.ratio_of_means(self._numerator, self._denominator)

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        return stats.ratio_interval(self._numerator, self._denominator, self.seed)

    @property
    def p_values(self) -> Float[np.ndarray, "layer column"]:
        """Two-sided sign-flip p-values of "the patch does nothing", not corrected for the number of cells."""
        base = self.corrupt if self.direction == "denoise" else self.clean
        return stats.sign_flip_p(np.where(self._there, self.per_example - base, 0.0), self.seed)

    @property
    def n(self) -> Int[np.ndarray, "layer column"]:
        """How many examples each cell speaks of."""
        return self._there.sum(-1)

    def to_frame(self) -> pd.DataFrame:
        """One row a cell: site, layer, position | span | head, (label), value, ci_low, ci_high, p_value, n."""
        import pandas as pd

        n_layers, n_columns, _ = self.per_example.shape
        layer, column = np.divmod(np.arange(n_layers * n_columns), n_columns)
        interval = self.interval
        data: dict[str, Any] = {"site": self.site, "layer": layer}
        data[self.column_kind] = [self.columns[i] for i in column] if self.column_kind == "span" else column
        if self.column_kind == "position":
            data["label"] = [self.columns[i] for i in column]
        cells = (self.values, interval.low, interval.high, self.p_values, self.n)
        data.update({name: cell.ravel() for name, cell in zip(FRAME_COLUMNS, cells, strict=True)})
        return pd.DataFrame(data)

    def plot(self) -> Any:
        """A heatmap as a matplotlib `Figure`: colours centred on "the patch does nothing"."""
        raw = {} if self.normalised else {"quantity": f"{self.metric} [{self.unit}]" if self.unit else self.metric}
        drawn = late.call("circuitlab.viz", "grid_from_frame", self.to_frame().assign(direction=self.direction), **raw)
        return late.call("circuitlab.viz", "heatmap", drawn)

    @property
    def _there(self) -> np.ndarray:
        return ~np.isnan(self.per_example)

    @property
    def _numerator(self) -> np.ndarray:
        base = self.corrupt if self.normalised else 0.0
        return np.where(self._there, self.per_example - base, 0.0)

    @property
    def _denominator(self) -> np.ndarray:
        one = (self.clean - self.corrupt) if self.normalised else np.ones_like(self.clean)
        return np.where(self._there, one, 0.0)
