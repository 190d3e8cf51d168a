"""What a sweep gives back: a grid of cells for every site."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.drawing import draw
from circuitlab.errors import UnknownNameError
from circuitlab.outputs.records import EARLIER
from circuitlab.patching.effects import FRAME_COLUMNS, Effects
from circuitlab.result import Result
from circuitlab.summary import largest, plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Grid(Effects):
    """A swept site: layers by positions, spans, heads or neurons, or by heads (neurons) and positions or spans.

    Where several metrics are measured, they are a further axis in front of the cells: `values` is then
    `[metric, layer, ...]`, and `metric` and `unit` name one each.

    Columns of `to_frame`: site, (metric), layer, (head | neuron), position | span, (label), value, ci_low, ci_high,
    p_value, n.

    Attributes:
        site: Which site.
        direction: "denoise": values put into the corrupted run; "noise": into the clean run.
        metric: Name of the metric, or of several.
        unit: Its unit, or those of several.
        column_kind: What the last axis of cells is: "position", "span", "head" or "neuron".
        columns: Labels of that axis.
        per_example: Raw metric with the cell patched; NaN where an example lacks the span.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run; None for pairs without corrupted prompts.
        normalised: Whether `values` are on the scale 0 = corrupted (without corrupted prompts: empty circuit), 1 =
            clean; else in the metric's unit.
        seed: Seed of intervals and p-values.
        ablation: What the patched values are: "corrupt" is the other prompt's value; see `Replacement`.
        layers: The layers of the rows; all, from 0 on, by default.
        member_kind: "head" or "neuron" where cells are also by position or span, else None.
        members: Labels of that axis.
        numbers: Positions of the columns, where only some were swept.
        empty: Metric of the empty circuit under the ablation, for pairs without corrupted prompts.
    """

    site: str
    direction: str
    metric: str | tuple[str, ...]
    unit: str | tuple[str, ...]
    column_kind: str
    columns: tuple[str, ...]
    per_example: Float[np.ndarray, "*cell example"]
    clean: Float[np.ndarray, "*metric example"]
    corrupt: Float[np.ndarray, "*metric example"] | None
    normalised: bool = True
    seed: int = 0
    ablation: str = field(default="corrupt", metadata={EARLIER: "replacement"})
    layers: tuple[int, ...] | None = None
    member_kind: str | None = None
    members: tuple[str, ...] = ()
    numbers: tuple[int, ...] | None = None
    empty: Float[np.ndarray, "*metric example"] | None = None

    @property
    def replacement(self) -> str:
        """The former name of `ablation`."""
        warnings.warn("Grid.replacement is now called Grid.ablation; the former name will go.", FutureWarning, 2)
        return self.ablation

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of `values`: ("metric",) layer, (head | neuron,) and the columns."""
        several = () if isinstance(self.metric, str) else ("metric",)
        members = () if self.member_kind is None else (self.member_kind,)
        return (*several, "layer", *members, self.column_kind)

    def of_metric(self, name: str) -> Grid:
        """The grid of one metric.

        Returns:
            The grid.

        Raises:
            UnknownNameError: It was not measured.
        """
        names = (self.metric,) if isinstance(self.metric, str) else self.metric
        UnknownNameError.check("metric", name, names, owner=f"the grid of {self.site}")
        if isinstance(self.metric, str):
            return self
        at = names.index(name)
        ends = {end: getattr(self, end) for end in ("clean", "corrupt", "empty")}
        arrays = {end: None if values is None else values[at] for end, values in ends.items()}
        return replace(self, metric=name, unit=self.unit[at], per_example=self.per_example[at], **arrays)

    def _labels(self) -> dict[str, Any]:
        at = dict(zip(self.axes, np.indices(self.per_example.shape[:-1]).reshape(len(self.axes), -1), strict=True))
        layers = np.arange(1 + at["layer"].max()) if self.layers is None else np.array(self.layers)
        data: dict[str, Any] = {"site": self.site}
        if "metric" in at:
            data["metric"] = [self.metric[i] for i in at["metric"]]
        data["layer"] = layers[at["layer"]]
        if self.member_kind is not None:
            data[self.member_kind] = [int(self.members[i]) for i in at[self.member_kind]]
        data[self.column_kind] = [self._column(int(i)) for i in at[self.column_kind]]
        if self.column_kind == "position":
            data["label"] = [self.columns[i] for i in at["position"]]
        return data

    def _column(self, place: int) -> int | str:
        if self.column_kind == "span":
            return self.columns[place]
        if self.column_kind == "position":
            return place if self.numbers is None else self.numbers[place]
        return int(self.columns[place])

    def _by_metric(self, values: np.ndarray) -> np.ndarray:
        return values[None] if isinstance(self.metric, str) else values

    def _by_cell(self, ends: Float[np.ndarray, "*metric example"]) -> np.ndarray:
        """The metric of a whole run, to be set against the cells."""
        cells = (1,) * (self.per_example.ndim - ends.ndim)
        return ends.reshape(*ends.shape[:-1], *cells, ends.shape[-1])

    @property
    def _change(self) -> np.ndarray:
        base = self.unit_end if self.direction == "denoise" else self.clean
        return np.where(self._present, self.per_example - self._by_cell(base), 0.0)

    @property
    def _numerator(self) -> np.ndarray:
        base = self._by_cell(self.unit_end) if self.normalised else 0.0
        return np.where(self._present, self.per_example - base, 0.0)

    @property
    def _denominator(self) -> np.ndarray:
        one = (self.clean - self.unit_end) if self.normalised else np.ones_like(self.clean)
        return np.where(self._present, self._by_cell(one), 0.0)

    def _summary(self) -> str:
        sides = " x ".join(plural(n, axis) for axis, n in zip(self.axes, self.per_example.shape, strict=False))
        return f"of {self.site}: {sides}, {plural(self.per_example.shape[-1], 'pair')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "direction", f"{self.direction}, ablation {self.ablation}"
        for name in (self.metric,) if isinstance(self.metric, str) else self.metric:
            yield from self.of_metric(name)._facts_of_metric()

    def _facts_of_metric(self) -> Iterable[tuple[str, object]]:
        values = self.values
        scale = f"0 = {self.unit_end_name}, 1 = clean run" if self.normalised else self.unit or "raw"
        yield "metric", self._ends
        if values.size and not np.isnan(values).all():
            yield "values", f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g} ({scale})"
        labels = self._labels()
        yield from largest(values.ravel().tolist(), lambda number: self._cell_name(labels, number))

    def _cell_name(self, labels: Mapping[str, Any], number: int) -> str:
        label = f" {labels['label'][number]!r}" if "label" in labels else ""
        return ", ".join(f"{axis} {labels[axis][number]}" for axis in self.axes) + label


class Grids(Result, Mapping[str, Grid]):
    """The grids of several sites that were swept together, by name of the site.

    Args:
        grids: One a site.
    """

    __slots__ = ("_grids",)

    def __init__(self, grids: Iterable[Grid]) -> None:
        self._grids: Mapping[str, Grid] = {grid.site: grid for grid in grids}

    def __getitem__(self, site: str) -> Grid:
        return self._grids[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._grids)

    def __len__(self) -> int:
        return len(self._grids)

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """The tables of all grids, concatenated; columns that a site does not have are missing there.

        Args:
            correction: As of `Grid.to_frame`; p-values are corrected for the cells of their own grid.

        Returns:
            The table.

        Raises:
            UnknownNameError: No such correction.
        """
        frames = [grid.to_frame(correction) for grid in self.values()]
        both = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*FRAME_COLUMNS])
        numbered = both.columns.intersection(["position", "head", "neuron"])
        labels = [name for name in both.columns if name not in FRAME_COLUMNS]
        return both.reindex(columns=[*labels, *FRAME_COLUMNS]).astype(dict.fromkeys(numbered, "Int64"))

    def plot(self) -> Any:
        """The heatmaps of all sites as one matplotlib `Figure`.

        Returns:
            The figure.
        """
        return draw(self)

    def to_record(self) -> dict[str, Any]:
        """The records of the grids by site, for JSON.

        Returns:
            The records.
        """
        return {site: grid.to_record() for site, grid in self.items()}

    def _summary(self) -> str:
        return f"of {plural(len(self), 'site')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return self.items()
