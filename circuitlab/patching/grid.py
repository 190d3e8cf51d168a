"""What a sweep gives back: one value per cell and example, and everything that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from circuitlab import stats
from circuitlab.drawing import draw
from circuitlab.errors import UnknownNameError
from circuitlab.summary import Summary, largest, plural

if TYPE_CHECKING:
    import pandas as pd

FRAME_COLUMNS = ("value", "ci_low", "ci_high", "p_value", "n")


CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "holm": stats.holm,
    "benjamini-hochberg": stats.benjamini_hochberg,
}


def check_correction(name: str | None) -> None:
    """Refuse a correction that does not exist; None is none.

    Raises:
        UnknownNameError: No such correction.
    """
    if name is not None and name not in CORRECTIONS:
        raise UnknownNameError.of("correction", name, CORRECTIONS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Grid(Summary):
    """A swept site: layers by positions, spans, heads or neurons, or by heads (neurons) and positions or spans.

    Attributes:
        site: Which site.
        direction: "denoise": values put into the corrupted run; "noise": into the clean run.
        metric: Name of the metric.
        unit: Its unit.
        column_kind: What the last axis of cells is: "position", "span", "head" or "neuron".
        columns: Labels of that axis.
        per_example: Raw metric with the cell patched; NaN where an example lacks the span.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        normalised: Whether `values` are on the scale 0 = corrupted, 1 = clean; else in the metric's unit.
        seed: Seed of intervals and p-values.
        replacement: What was put in: "corrupt" is the other prompt's value; see `circuitlab.patching.runs.replacement`.
        layers: The layers of the rows; all, from 0 on, by default.
        member_kind: "head" or "neuron" where cells are also by position or span, else None.
        members: Labels of that axis.
        numbers: Positions of the columns, where only some were swept.
    """

    site: str
    direction: str
    metric: str
    unit: str
    column_kind: str
    columns: tuple[str, ...]
    per_example: Float[np.ndarray, "*cell example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    normalised: bool = True
    seed: int = 0
    replacement: str = "corrupt"
    layers: tuple[int, ...] | None = None
    member_kind: str | None = None
    members: tuple[str, ...] = ()
    numbers: tuple[int, ...] | None = None

    @property
    def values(self) -> Float[np.ndarray, "*cell"]:
        """Mean over examples; normalised: 0 = corrupted, 1 = clean, means first and then their ratio."""
        return stats.ratio_of_means(self._numerator, self._denominator)

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        return stats.ratio_interval(self._numerator, self._denominator, self.seed)

    @property
    def p_values(self) -> Float[np.ndarray, "*cell"]:
        """Two-sided sign-flip p-values of "the patch does nothing", not corrected for the number of cells."""
        base = self.corrupt if self.direction == "denoise" else self.clean
        return stats.sign_flip_p(np.where(self._there, self.per_example - base, 0.0), self.seed)

    def corrected_p_values(self, correction: str = "holm") -> Float[np.ndarray, "*cell"]:
        """`p_values` corrected for the number of cells of this grid.

        Args:
            correction: "holm" controls the chance of any false finding, "benjamini-hochberg" the share of false ones
                among the findings.

        Raises:
            UnknownNameError: No such correction.
        """
        check_correction(correction)
        return CORRECTIONS[correction](self.p_values)

    @property
    def n(self) -> Int[np.ndarray, "*cell"]:
        """How many examples each cell speaks of."""
        return self._there.sum(-1)

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """One row a cell: site, layer, (head | neuron), position | span, (label), value, ci_low, ci_high, p_value, n.

        With a correction (see `corrected_p_values`), `p_value` is the corrected one.
        """
        import pandas as pd

        cells = self.per_example.shape[:-1]
        at = np.unravel_index(np.arange(int(np.prod(cells))), cells)
        interval = self.interval
        layers = np.arange(cells[0]) if self.layers is None else np.array(self.layers)
        data: dict[str, Any] = {"site": self.site, "layer": layers[at[0]]}
        if self.member_kind is not None:
            data[self.member_kind] = [int(self.members[i]) for i in at[1]]
        data[self.column_kind] = [self._column(int(i)) for i in at[-1]]
        if self.column_kind == "position":
            data["label"] = [self.columns[i] for i in at[-1]]
        p_values = self.p_values if correction is None else self.corrected_p_values(correction)
        numbers = (self.values, interval.low, interval.high, p_values, self.n)
        data.update({name: cell.ravel() for name, cell in zip(FRAME_COLUMNS, numbers, strict=True)})
        return pd.DataFrame(data)

    def plot(self) -> Any:
        """A heatmap as a matplotlib `Figure`: colours centred on "the patch does nothing"."""
        return draw(self)

    def _column(self, place: int) -> int | str:
        if self.column_kind == "span":
            return self.columns[place]
        if self.column_kind == "position":
            return place if self.numbers is None else self.numbers[place]
        return int(self.columns[place])

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

    def _summary(self) -> str:
        sides = [plural(self.per_example.shape[0], "layer")]
        if self.member_kind is not None:
            sides.append(plural(self.per_example.shape[1], self.member_kind))
        sides.append(plural(self.per_example.shape[-2], self.column_kind))
        return f"of {self.site}: {' x '.join(sides)}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        values = self.values
        scale = "0 = corrupted run, 1 = clean run" if self.normalised else self.unit or "raw"
        yield "direction", f"{self.direction}, replacement {self.replacement}"
        yield "metric", f"{self.metric}: clean {self.clean.mean():.4g}, corrupted {self.corrupt.mean():.4g}"
        if values.size and not np.isnan(values).all():
            yield "values", f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g} ({scale})"
        yield from largest(values.ravel().tolist(), self._cell_name)

    def _cell_name(self, number: int) -> str:
        at = np.unravel_index(number, self.per_example.shape[:-1])
        row = int(at[0])
        words = [f"layer {row if self.layers is None else self.layers[row]}"]
        if self.member_kind is not None:
            words.append(f"{self.member_kind} {self.members[at[1]]}")
        column = int(at[-1])
        label = f" {self.columns[column]!r}" if self.column_kind == "position" else ""
        return ", ".join([*words, f"{self.column_kind} {self._column(column)}{label}"])
