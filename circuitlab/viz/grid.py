"""A table of numbers whose rows and columns have names: what a heatmap draws."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.errors import ConfigError, FormatError
from circuitlab.viz.text import visible_token

# A tenth of the way from corrupted to clean: sweeps of a site that does nothing scatter below it.
_LEAST_RECOVERED = 0.1
RECOVERED = "recovered by the patch\n0 = corrupted, 1 = clean"
LEFT = "left without the cell\n0 = empty circuit, 1 = clean"
"""What cells are where pairs have no corrupted prompts."""
_TITLES = {
    "resid_pre": "Residual stream before the layer",
    "resid_mid": "Residual stream between attention and MLP",
    "resid_post": "Residual stream after the layer",
    "attn_out": "Attention output",
    "mlp_out": "MLP output",
    "head_z": "Attention heads: output (z)",
    "head_q": "Attention heads: query",
    "head_k": "Attention heads: key",
    "head_v": "Attention heads: value",
    "pattern": "Attention heads: pattern",
    "neuron": "MLP neurons",
    "feature": "Features of an autoencoder",
}
SITES = tuple(_TITLES)
"""The known sites, in the order in which a layer computes them."""

FROM_THE_ANSWER = "token position, counted from the end (-1: answer)"
_COLUMN_TITLES = {"position": "token"}
# What a layer has several of; a table has at most one of these columns.
_MEMBERS = ("head", "neuron", "feature")
_NUMBERS = ("value", "ci_low", "ci_high", "p_value", "n", "layer", "position", *_MEMBERS)
_TEXTS = ("site", "label", "span")
# A heatmap of more columns of neurons, or more rows of heads or neurons, cannot be read; the strongest are drawn.
_MOST_COLUMNS, _MOST_ROWS = 64, 192
STRONGEST = 48
"""How many heads, neurons or features are drawn where there are too many for one figure."""


ALL_POSITIONS = "all positions"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledGrid:
    """Values with the names of their rows and columns. Row 0 is drawn at the top.

    Attributes:
        values: One number a cell; NaN where nothing was measured.
        row_labels: A name for each row.
        col_labels: A name for each column.
        row_title: What the rows are.
        col_title: What the columns are.
        title: What was measured.
        quantity: What the numbers are, with their unit or scale; may have two lines.
        centre: The value that means "no effect"; colours are symmetric about it.
        low: Lower ends of the cells' intervals.
        high: Upper ends.
        col_numbers: Positions of the columns, where their labels are not numbers themselves.
        n_examples: Over how many prompts the values are taken, the least and the most of all cells.
        least_reach: The colour scale reaches at least this far from the centre, so that noise around it stays pale.
        one_sided: No value can be below the centre, so that the colour bar shows what is above it alone.

    Raises:
        ConfigError: Sizes do not go together, or there is no cell.
    """

    values: Float[np.ndarray, "grid_row grid_col"]
    row_labels: tuple[str, ...]
    col_labels: tuple[str, ...]
    row_title: str
    col_title: str
    title: str
    quantity: str
    centre: float = 0.0
    low: Float[np.ndarray, "grid_row grid_col"] | None = None
    high: Float[np.ndarray, "grid_row grid_col"] | None = None
    col_numbers: tuple[str, ...] | None = None
    n_examples: tuple[int, int] | None = None
    least_reach: float = 0.0
    one_sided: bool = False

    def __post_init__(self) -> None:
        wanted = (len(self.row_labels), len(self.col_labels))
        shapes = {"values": self.values, "low": self.low, "high": self.high}
        for name, array in shapes.items():
            if array is not None and array.shape != wanted:
                raise ConfigError(
                    f"{name} has the shape {array.shape}, the labels {wanted}: one label a row and a column."
                )
        if 0 in wanted:
            raise ConfigError(f"a grid of {wanted[0]} rows and {wanted[1]} columns has no cell to show.")
        if self.col_numbers is not None and len(self.col_numbers) != wanted[1]:
            raise ConfigError(f"{len(self.col_numbers)} column numbers for {wanted[1]} columns.")

    @property
    def differs(self) -> np.ndarray | None:
        """Where the interval leaves out the centre; None without intervals."""
        if self.low is None or self.high is None:
            return None
        return (self.low > self.centre) | (self.high < self.centre)


def read_sweep(path: str | Path) -> pd.DataFrame:
    """Read a tidy sweep table; tokens such as "null" or "NA" stay the text they are.

    Returns:
        The table, one row a cell.

    Raises:
        FormatError: The file is no such table.
    """
    path = Path(path)
    try:
        missing = {name: ["", "nan", "NaN"] for name in _NUMBERS}
        frame = pd.read_csv(path, keep_default_na=False, na_values=missing, dtype=dict.fromkeys(_TEXTS, str))
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path.name} is not a table with a header line: {error}") from error
    if "value" not in frame.columns:
        raise FormatError(f"{path.name} has no column 'value'; its columns are {', '.join(map(str, frame.columns))}.")
    return frame


def grid_from_frame(frame: pd.DataFrame, *, title: str | None = None, quantity: str = RECOVERED) -> LabelledGrid:
    """The grid of one site out of a tidy sweep table.

    Rows are layers, columns heads, neurons, positions or spans; where a table has heads (neurons) and positions, each
    head is a row. Cells that the table lacks are NaN. Of more than 64 neurons a layer, or 192 rows of heads or neurons,
    the `STRONGEST` are kept, one per row, strongest first, as stated in the title.

    Args:
        frame: Columns `site`, `layer`, one of `position`, `span`, `head`, `neuron`, `feature` (or one of the last three
            and a position or span), `value`; where present `label` (the token at a position), `ci_low`, `ci_high`,
            `n`, and `direction` ("noise" puts the centre at 1: there an untouched run is the clean one).
        title: Over the figure; by default what the site is.
        quantity: What the values are.

    Returns:
        The grid.

    Raises:
        FormatError: A column is missing, a cell occurs twice, a value is not a number, or there are several sites.
    """
    site = _only_site(frame)
    noise = "direction" in frame.columns and set(frame["direction"]) == {"noise"}
    centre, title = 1.0 if noise else 0.0, title if title is not None else _TITLES.get(site, site)
    cells, axis, member = _cells(frame)
    rows = ["layer", "member"] if member and axis != member else ["layer"]
    if cells.duplicated([*rows, "column"]).any():
        raise FormatError(f"sweep table of {site!r}: a cell occurs more than once. Keep one line per cell.")
    row_keys = cells.set_index(rows).index.unique().sort_values()
    if _too_many(cells, row_keys, axis, member):
        rows = ["layer", "member"]
        reach = cells.assign(reach=np.nan_to_num(np.abs(cells["value"] - centre))).pivot_table(
            "reach", rows, aggfunc="max"
        )
        row_keys = reach.sort_values("reach", ascending=False, kind="stable").index[:STRONGEST]
        title = f"{title}: the {len(row_keys)} strongest of {len(reach):,}"
        cells = cells.loc[cells.set_index(rows).index.isin(row_keys)]
        if axis == member:
            axis, cells = ALL_POSITIONS, cells.assign(column=0)
    columns = list(dict.fromkeys(cells["column"])) if axis == "span" else sorted(set(cells["column"]))
    values, low, high = (
        cells.pivot_table(name, rows, "column").reindex(index=row_keys, columns=columns).to_numpy()
        if name in cells
        else None
        for name in ("value", "ci_low", "ci_high")
    )
    assert values is not None, "every table has values"
    labels, numbers = _column_labels(cells, axis, columns)
    counts = np.asarray(cells["n"]) if "n" in cells else np.zeros(0)
    return LabelledGrid(
        values=values,
        row_labels=tuple(_row_label(key, member) for key in row_keys),
        col_labels=labels,
        row_title=member if len(rows) == 2 else "layer",
        col_title=FROM_THE_ANSWER if axis == "position" and columns[0] < 0 else _COLUMN_TITLES.get(axis, axis),
        title=title,
        quantity=quantity,
        centre=centre,
        low=low if high is not None else None,
        high=high if low is not None else None,
        col_numbers=numbers,
        n_examples=(int(counts.min()), int(counts.max())) if len(counts) and not np.isnan(counts).any() else None,
        least_reach=_LEAST_RECOVERED if quantity in (RECOVERED, LEFT) else 0.0,
    )


def _too_many(cells: pd.DataFrame, row_keys: pd.Index, axis: str, member: str) -> bool:
    """Whether a table has more members of layers (heads, neurons, features) than one figure can show."""
    if axis == member:
        return member in ("neuron", "feature") and len(set(cells["column"])) > _MOST_COLUMNS
    return bool(member) and len(row_keys) > _MOST_ROWS


def _only_site(frame: pd.DataFrame) -> str:
    if missing := {"site", "layer", "value"} - set(frame.columns):
        raise FormatError(
            f"sweep table: no column {', '.join(sorted(missing))}; it has {', '.join(map(str, frame.columns))}."
        )
    sites = list(dict.fromkeys(map(str, frame["site"])))
    if len(sites) != 1:
        raise FormatError(
            f"sweep table: one site a grid, this one has {sites or 'no lines'}. Select with frame[frame.site == ...]."
        )
    return sites[0]


def _cells(frame: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The table with layer, member and column of every cell, what its columns are, and what its members are.

    The member is "head", "neuron" or "feature", or "" where a layer has one cell a column.
    """
    there = [str(name) for name in frame.columns if not np.any(pd.isna(frame[name]))]
    member = next((name for name in reversed(_MEMBERS) if name in there), "")
    axis = next((name for name in ("position", "span", member) if name in there), ALL_POSITIONS)
    try:
        keys = {"layer": frame["layer"].astype(int), "member": frame[member].astype(int) if member else 0}
        column = 0 if axis == ALL_POSITIONS else frame[axis].astype(str if axis == "span" else int)
    except (TypeError, ValueError) as error:
        raise FormatError(f"sweep table: layers, heads, neurons and positions are whole numbers ({error}).") from error
    numbers: dict[str, np.ndarray] = {}
    for name in {"value", "ci_low", "ci_high", "n"} & set(frame.columns):
        try:
            numbers[name] = np.asarray(frame[name], dtype=float)
        except (TypeError, ValueError) as error:
            raise FormatError(f"sweep table: column {name!r} holds something that is no number ({error}).") from error
    label = frame["label"] if "label" in frame.columns else None
    return pd.DataFrame({**keys, "column": column, "label": label, **numbers}, index=frame.index), axis, member


def _row_label(key: int | tuple[int, int], member: str) -> str:
    if not isinstance(key, tuple):
        return str(key)
    return {"feature": f"{key[1]}", "neuron": f"L{key[0]}N{key[1]}"}.get(member, f"a{key[0]}.h{key[1]}")


def _column_labels(
    cells: pd.DataFrame, axis: str, columns: list[Any]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Labels of the columns, and their numbers where the labels are words."""
    if axis == ALL_POSITIONS:
        return ("all",), None
    numbers = tuple(map(str, columns))
    words = dict(zip(reversed(list(cells["column"])), reversed(list(cells["label"])), strict=True))
    if axis == "position" and all(isinstance(word, str) for word in words.values()):
        return tuple(visible_token(words[column]) for column in columns), numbers
    return numbers, None
