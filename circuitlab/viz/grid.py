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
    "feature": "Features of an autoencoder",
}
SITES = tuple(_TITLES)
"""The known sites, in the order in which a layer computes them."""

_COLUMN_TITLES = {"head": "head", "position": "token", "span": "span"}
_NUMBERS = ("value", "ci_low", "ci_high", "p_value", "n", "layer", "head", "position")


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
        frame = pd.read_csv(path, keep_default_na=False, na_values={name: ["", "nan", "NaN"] for name in _NUMBERS})
    except (ValueError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path.name} is not a table with a header line: {error}") from error
    if "value" not in frame.columns:
        raise FormatError(f"{path.name} has no column 'value'; its columns are {', '.join(map(str, frame.columns))}.")
    return frame


def grid_from_frame(frame: pd.DataFrame, *, title: str | None = None, quantity: str = RECOVERED) -> LabelledGrid:
    """The grid of one site out of a tidy sweep table.

    Rows are layers, columns heads, positions or spans; where a table has heads and positions, each head is a row. Cells
    that the table lacks are NaN.

    Args:
        frame: Columns `site`, `layer`, one of `position`, `span`, `head` (or a head and a position), `value`; where
            present `label` (the token at a position), `ci_low`, `ci_high`, `n`, and `direction` ("noise" puts the
            centre at 1: there an untouched run is the clean one).
        title: Over the figure; by default what the site is.
        quantity: What the values are.

    Raises:
        FormatError: A column is missing, a cell stands twice, a number is not one, or there are several sites.
    """
    site = _only_site(frame)
    axis, rows, cols = _keys(frame)
    row_keys = sorted(set(rows))
    col_keys = list(dict.fromkeys(cols)) if axis == "span" else sorted(set(cols))
    at = ([row_keys.index(key) for key in rows], [col_keys.index(key) for key in cols])
    if len(set(zip(*at, strict=True))) < len(frame):
        raise FormatError(f"sweep table of {site!r}: a cell stands more than once. Keep one line per cell.")
    labels, numbers = _column_labels(frame, axis, cols, col_keys)
    by_head = bool(row_keys) and len(row_keys[0]) == 2
    by_feature = site == "feature" and by_head
    bounds = {"ci_low", "ci_high"} <= set(frame.columns)
    shape = (len(row_keys), len(col_keys))
    noise = "direction" in frame.columns and set(frame["direction"]) == {"noise"}
    return LabelledGrid(
        values=_filled(frame, "value", shape, at),
        row_labels=tuple(_row_label(key, site) for key in row_keys),
        col_labels=labels,
        row_title="feature" if by_feature else "head" if by_head else "layer",
        col_title=_COLUMN_TITLES.get(axis, axis),
        title=title if title is not None else _TITLES.get(site, site),
        quantity=quantity,
        centre=1.0 if noise else 0.0,
        low=_filled(frame, "ci_low", shape, at) if bounds else None,
        high=_filled(frame, "ci_high", shape, at) if bounds else None,
        col_numbers=numbers,
        n_examples=_counts(frame),
        least_reach=_LEAST_RECOVERED if quantity == RECOVERED else 0.0,
    )


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


def _keys(frame: pd.DataFrame) -> tuple[str, list[tuple[int, ...]], list[Key]]:
    """What the columns are, and the row and column key of every line."""
    member = "feature" if "feature" in frame.columns else "head"
    axes = [name for name in ("position", "span", member) if name in frame.columns and not np.any(pd.isna(frame[name]))]
    try:
        layers = [int(value) for value in frame["layer"]]
        heads = [int(value) for value in frame[member]] if member in axes else None
        axis = axes[0] if axes else "all positions"
        cols: list[Key] = [str(v) if axis == "span" else int(v) for v in frame[axis]] if axes else [0] * len(frame)
    except (TypeError, ValueError) as error:
        raise FormatError(f"sweep table: layers, heads and positions are whole numbers ({error}).") from error
    if heads is None or axis == member:
        return axis, [(layer,) for layer in layers], cols
    return axis, list(zip(layers, heads, strict=True)), cols


def _row_label(key: tuple[int, ...], site: str) -> str:
    if len(key) == 1:
        return str(key[0])
    return str(key[1]) if site == "feature" else f"a{key[0]}.h{key[1]}"


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
    return (("all",), None) if axis == "all positions" else (tuple(map(str, col_keys)), None)


def _filled(frame: pd.DataFrame, name: str, shape: tuple[int, int], at: tuple[list[int], list[int]]) -> np.ndarray:
    values = np.full(shape, np.nan)
    try:
        values[at] = np.asarray(frame[name], dtype=float)
    except (TypeError, ValueError) as error:
        raise FormatError(f"sweep table: column {name!r} holds something that is no number ({error}).") from error
    return values
