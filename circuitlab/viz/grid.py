"""A table of numbers whose rows and columns have names: what a heatmap draws."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.errors import ConfigError, FormatError
from circuitlab.viz.text import visible_token

# A tenth of the way from corrupted to clean: sweeps of a site that does nothing scatter below it.
_LEAST_RECOVERED = 0.1
RECOVERED = "recovered by the patch\n0 = corrupted, 1 = clean"
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
Key = int | str
"""A position, a head or the name of a span."""


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
    keys = _keys(frame)
    if len(set(zip(keys.rows, keys.cols, strict=True))) < len(frame):
        raise FormatError(f"sweep table of {site!r}: a cell occurs more than once. Keep one line per cell.")
    if kept := _strongest(frame, keys, centre):
        title = f"{title}: the {len(kept)} strongest of {len(set(keys.member_rows)):,}"
        inside = [row in kept for row in keys.member_rows]
        frame, keys = frame.loc[inside], keys.by_member(inside)
    row_keys = kept or sorted(set(keys.rows))
    col_keys = list(dict.fromkeys(keys.cols)) if keys.axis == "span" else sorted(set(keys.cols))
    row_at, col_at = ({key: i for i, key in enumerate(found)} for found in (row_keys, col_keys))
    at = ([row_at[key] for key in keys.rows], [col_at[key] for key in keys.cols])
    labels, numbers = _column_labels(frame, keys.axis, keys.cols, col_keys)
    by_member = bool(row_keys) and len(row_keys[0]) == 2
    bounds = {"ci_low", "ci_high"} <= set(frame.columns)
    shape = (len(row_keys), len(col_keys))
    return LabelledGrid(
        values=_filled(frame, "value", shape, at),
        row_labels=tuple(_row_label(key, keys.member) for key in row_keys),
        col_labels=labels,
        row_title=keys.member if by_member else "layer",
        col_title=_col_title(keys.axis, col_keys),
        title=title,
        quantity=quantity,
        centre=centre,
        low=_filled(frame, "ci_low", shape, at) if bounds else None,
        high=_filled(frame, "ci_high", shape, at) if bounds else None,
        col_numbers=numbers,
        n_examples=_counts(frame),
        least_reach=_LEAST_RECOVERED if quantity == RECOVERED else 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """Where every line of a table belongs.

    Attributes:
        axis: What the columns are.
        member: "head", "neuron" or "feature", or "" where a layer has one cell a column.
        rows: Row of each line: a layer, or a layer and a member.
        cols: Column of each line.
        member_rows: Layer and member of each line; empty where there is no member.
    """

    axis: str
    member: str
    rows: list[tuple[int, ...]]
    cols: list[Key]
    member_rows: list[tuple[int, ...]]

    def by_member(self, inside: list[bool]) -> _Keys:
        """The same for some lines, with a row for each layer and member."""
        whole = self.axis == self.member
        cols: list[Key] = [0 if whole else col for col, kept in zip(self.cols, inside, strict=True) if kept]
        rows = [row for row, kept in zip(self.member_rows, inside, strict=True) if kept]
        axis = ALL_POSITIONS if whole else self.axis
        return _Keys(axis=axis, member=self.member, rows=rows, cols=cols, member_rows=rows)


def _strongest(frame: pd.DataFrame, keys: _Keys, centre: float) -> list[tuple[int, ...]]:
    """Layer and number of the members farthest from the centre, where there are too many to draw; else nothing."""
    whole = keys.axis == keys.member
    many = len(set(keys.cols)) > _MOST_COLUMNS and keys.member != "head" if whole else len(set(keys.rows)) > _MOST_ROWS
    if not keys.member or not many:
        return []
    reach = dict.fromkeys(keys.member_rows, 0.0)
    for row, value in zip(keys.member_rows, np.abs(_numbers(frame, "value") - centre), strict=True):
        reach[row] = max(reach[row], float(np.nan_to_num(value)))
    return sorted(reach, key=lambda row: (-reach[row], row))[:STRONGEST]


def _col_title(axis: str, col_keys: list[Key]) -> str:
    """What the columns are; positions of prompts of several lengths are negative numbers."""
    backwards = axis == "position" and any(isinstance(key, int) and key < 0 for key in col_keys)
    return FROM_THE_ANSWER if backwards else _COLUMN_TITLES.get(axis, axis)


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


def _counts(frame: pd.DataFrame) -> tuple[int, int] | None:
    """The least and the largest number of prompts of a cell; None where the table has none."""
    if "n" not in frame.columns or np.any(pd.isna(frame["n"])):
        return None
    counts = [int(count) for count in frame["n"]]
    return min(counts), max(counts)


def _keys(frame: pd.DataFrame) -> _Keys:
    """What the columns are, and the row and column of every line."""
    there = [name for name in frame.columns if not np.any(pd.isna(frame[name]))]
    member = next((name for name in reversed(_MEMBERS) if name in there), "")
    axis = next((name for name in ("position", "span", member) if name in there), ALL_POSITIONS)
    try:
        layers = [int(value) for value in frame["layer"]]
        members = [int(value) for value in frame[member]] if member else []
        cols: list[Key] = [0] * len(frame)
        if axis != ALL_POSITIONS:
            cols = [str(value) if axis == "span" else int(value) for value in frame[axis]]
    except (TypeError, ValueError) as error:
        raise FormatError(f"sweep table: layers, heads, neurons and positions are whole numbers ({error}).") from error
    pairs: list[tuple[int, ...]] = list(zip(layers, members, strict=True)) if member else []
    rows: list[tuple[int, ...]] = pairs if member and axis != member else [(layer,) for layer in layers]
    return _Keys(axis=axis, member=member, rows=rows, cols=cols, member_rows=pairs)


def _row_label(key: tuple[int, ...], member: str) -> str:
    if len(key) == 1:
        return str(key[0])
    return {"feature": f"{key[1]}", "neuron": f"L{key[0]}N{key[1]}"}.get(member, f"a{key[0]}.h{key[1]}")


def _column_labels(
    frame: pd.DataFrame, axis: str, cols: list[Key], col_keys: list[Key]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Labels of the columns, and their numbers where the labels are words."""
    if axis == "span":
        return tuple(map(str, col_keys)), None
    if axis == "position" and "label" in frame.columns:
        words = dict(zip(reversed(cols), reversed(list(frame["label"])), strict=True))
        if all(isinstance(word, str) for word in words.values()):
            return tuple(visible_token(words[key]) for key in col_keys), tuple(map(str, col_keys))
    return (("all",), None) if axis == ALL_POSITIONS else (tuple(map(str, col_keys)), None)


def _filled(frame: pd.DataFrame, name: str, shape: tuple[int, int], at: tuple[list[int], list[int]]) -> np.ndarray:
    values = np.full(shape, np.nan)
    values[at] = _numbers(frame, name)
    return values


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    try:
        return np.asarray(frame[name], dtype=float)
    except (TypeError, ValueError) as error:
        raise FormatError(f"sweep table: column {name!r} holds something that is no number ({error}).") from error
