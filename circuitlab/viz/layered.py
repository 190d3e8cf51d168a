"""Positions of nodes and routes of edges of a circuit drawing: a layered layout after Sugiyama.

1. Nodes are placed in rows, in the order in which they write: input, each layer's heads, its MLP, ..., logits.
2. All edges of one source are bundled; the bundle crosses each row between source and reader at its own point, so
   that no edge passes under a node.
3. The order within the rows comes from barycentre sweeps up and down; the order with the fewest crossings is kept.
4. Places within the order are those nearest to the neighbours that keep the least distances (a weighted isotonic
   regression); trunks weigh more than branches, so that they come out straight.

No drawing here, and nothing random: equal circuits get equal places.

References:
    Sugiyama, Tagawa, Toda 1981, "Methods for visual understanding of hierarchical system structures".
    Gansner, Koutsofios, North, Vo 1993, "A technique for drawing directed graphs" (weights of trunks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from scipy.optimize import isotonic_regression

# How strongly a link pulls its ends together, by how many of them are points of a trunk.
_PULL = (1.0, 2.0, 6.0)
_ORDER_SWEEPS = 24
_PATIENCE = 6
_PLACE_SWEEPS = 24

Item = tuple[str, int]
"""A node (its name and its row), or the point at which the trunk of a source passes another row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A piece of an edge between two rows that follow each other.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        offset: Where it arrives at the upper end, to the right of that item's middle, in inches.
    """

    low: Item
    high: Item
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """A finished layout.

    Attributes:
        rows: Items from left to right, from the lowest row to the highest.
        x: Middle of every item in inches; the leftmost edge of all is at 0.
        width: Right edge of the rightmost item in inches.
        n_crossings: How many pairs of links cross.
        spread: For every gap between rows, the mean sideways run of its links in inches.
    """

    rows: tuple[tuple[Item, ...], ...]
    x: Mapping[Item, float]
    width: float
    n_crossings: int
    spread: tuple[float, ...]


def lay_out(
    rows: Sequence[Sequence[str]],
    edges: Sequence[tuple[str, str, float]],
    half_width: Mapping[str, float],
    *,
    trunk: float = 0.045,
) -> Layered:
    """Order and place the nodes of a layered graph.

    Args:
        rows: Node names from the lowest row to the highest, each row in its natural order.
        edges: Source, target and arrival offset; a target is in a higher row than its source.
        half_width: Half the width that every node takes in its row, in inches.
        trunk: Half the width kept free for a passing trunk.

    Returns:
        The layout with the fewest crossings among those tried.
    """
    row_of = {name: i for i, row in enumerate(rows) for name in row}
    by_gap = _links(edges, row_of, len(rows))
    items = _first_order(rows, by_gap)
    half = {item: half_width[item[0]] if row_of[item[0]] == item[1] else trunk for row in items for item in row}
    items, x = _ordered(items, by_gap, half)
    # Every item moves towards its neighbours above and below, the order fixed.
    passing = {item: row_of[item[0]] != item[1] for row in items for item in row}
    for sweep in range(_PLACE_SWEEPS):
        for i in range(len(items)) if sweep % 2 == 0 else range(len(items) - 1, -1, -1):
            below, above = by_gap[i - 1] if i > 0 else (), by_gap[i] if i < len(by_gap) else ()
            x.update(_nearest(items[i], _wanted(items[i], below, above, x, passing), half))
    left = min(x[item] - half[item] for row in items for item in row)
    x = {item: place - left for item, place in x.items()}
    return Layered(
        rows=tuple(tuple(row) for row in items),
        x=x,
        width=max(x[item] + half[item] for row in items for item in row),
        n_crossings=_crossings(items, by_gap),
        spread=tuple(
            float(np.mean([abs(x[link.high] + link.offset - x[link.low]) for link in gap_links])) if gap_links else 0.0
            for gap_links in by_gap
        ),
    )


def path_of(source: str, target: str, row_of: Mapping[str, int]) -> tuple[Item, ...]:
    """The items that an edge passes, both ends included.

    Returns:
        The items, from the source to the target.
    """
    return (*((source, row) for row in range(row_of[source], row_of[target])), (target, row_of[target]))


def _links(edges: Sequence[tuple[str, str, float]], row_of: Mapping[str, int], n_rows: int) -> list[list[Link]]:
    """By gap between rows, every piece of every edge that crosses it, trunks once; in a fixed order."""
    gaps = [dict[Link, None]() for _ in range(n_rows - 1)]
    for source, target, offset in edges:
        path = path_of(source, target, row_of)
        for low, high in pairwise(path):
            gaps[low[1]][Link(low=low, high=high, offset=offset if high is path[-1] else 0.0)] = None
    return [list(gap) for gap in gaps]


def _first_order(rows: Sequence[Sequence[str]], by_gap: Sequence[Sequence[Link]]) -> list[list[Item]]:
    """Nodes in their natural order, trunks to the right of them."""
    ordered = [dict.fromkeys((name, i) for name in row) for i, row in enumerate(rows)]
    for link in chain.from_iterable(by_gap):
        ordered[link.low[1]][link.low] = ordered[link.high[1]][link.high] = None
    return [list(row) for row in ordered]


def _ordered(
    rows: list[list[Item]], by_gap: Sequence[Sequence[Link]], half: Mapping[Item, float]
) -> tuple[list[list[Item]], dict[Item, float]]:
    """The order with the fewest crossings over all sweeps, and places that go with it."""
    x = {item: place for row in rows for item, place in _nearest(row, dict.fromkeys(row, (0.0, 1.0)), half).items()}
    best, best_count, best_x = [list(row) for row in rows], _crossings(rows, by_gap), dict(x)
    rows, idle = [list(row) for row in rows], 0
    for sweep in range(_ORDER_SWEEPS):
        upward = sweep % 2 == 0
        steps = range(1, len(rows)) if upward else range(len(rows) - 2, -1, -1)
        for i in steps:
            wanted = _wanted(rows[i], by_gap[i - 1] if upward else (), () if upward else by_gap[i], x, {})
            mean = {item: wanted[item][0] for item in rows[i]}
            rows[i].sort(key=mean.__getitem__)
            x.update(_nearest(rows[i], {item: (mean[item], 1.0) for item in rows[i]}, half))
        _exchange(rows, by_gap, upward)
        for row in rows:
            x.update(_nearest(row, {item: (x[item], 1.0) for item in row}, half))
        count = _crossings(rows, by_gap)
        idle = 0 if count < best_count else idle + 1
        if idle > _PATIENCE:
            break
        if count < best_count:
            best, best_count, best_x = [list(row) for row in rows], count, dict(x)
    return best, best_x


def _exchange(rows: list[list[Item]], by_gap: Sequence[Sequence[Link]], upward: bool) -> None:
    """Exchange neighbours within a row wherever that removes crossings."""
    for i in range(len(rows)) if upward else reversed(range(len(rows))):
        ends: dict[Item, tuple[list[float], list[float]]] = {item: ([], []) for item in rows[i]}
        if i > 0:
            below = {item: float(at) for at, item in enumerate(rows[i - 1])}
            for link in by_gap[i - 1]:
                ends[link.high][0].append(below[link.low])
        if i < len(rows) - 1:
            above = {item: float(at) for at, item in enumerate(rows[i + 1])}
            for link in by_gap[i]:
                # The slots of a head are separate: q left of k left of v.
                ends[link.low][1].append(above[link.high] + 0.3 * np.sign(link.offset))
        arrays = {item: tuple(np.array(side) for side in sides) for item, sides in ends.items()}
        for at in range(len(rows[i]) - 1):
            left, right = rows[i][at], rows[i][at + 1]
            gain = sum(
                _cross(arrays[left][s], arrays[right][s]) - _cross(arrays[right][s], arrays[left][s]) for s in (0, 1)
            )
            if gain > 0:
                rows[i][at], rows[i][at + 1] = right, left


def _cross(left: np.ndarray, right: np.ndarray) -> int:
    """How many links of a left item cross those of the item to its right."""
    return int((left[:, None] > right[None, :]).sum())


def _wanted(
    row: Sequence[Item],
    below: Sequence[Link],
    above: Sequence[Link],
    x: Mapping[Item, float],
    passing: Mapping[Item, bool],
) -> dict[Item, tuple[float, float]]:
    """For every item the weighted mean place of its neighbours, and its weight; where it is if it has none."""
    total, weight = dict.fromkeys(row, 0.0), dict.fromkeys(row, 0.0)
    for links, at_high in ((below, True), (above, False)):
        for link in links:
            item, other = (link.high, link.low) if at_high else (link.low, link.high)
            pull = _PULL[passing.get(link.low, False) + passing.get(link.high, False)]
            total[item] += pull * (x[other] - link.offset if at_high else x[other] + link.offset)
            weight[item] += pull
    return {item: (total[item] / weight[item], weight[item]) if weight[item] else (x[item], 1e-3) for item in row}


def _nearest(
    row: Sequence[Item], wanted: Mapping[Item, tuple[float, float]], half: Mapping[Item, float]
) -> dict[Item, float]:
    """Places in the given order, with space for each item, at the least weighted squared distance to those wanted.

    With the least distances subtracted, this is isotonic regression.
    """
    shifts = np.cumsum([0.0, *(half[left] + half[right] for left, right in pairwise(row))])
    places, weights = np.array([wanted[item] for item in row]).T
    found = isotonic_regression(places - shifts, weights=weights).x + shifts
    return dict(zip(row, found.tolist(), strict=True))


def _crossings(rows: Sequence[Sequence[Item]], by_gap: Sequence[Sequence[Link]]) -> int:
    """Pairs of links of one gap that cross."""
    at = {item: float(i) for row in rows for i, item in enumerate(row)}
    count = 0
    for links in by_gap:
        low = np.array([at[link.low] for link in links])
        high = np.array([at[link.high] + 0.3 * np.sign(link.offset) for link in links])
        count += int(((low[:, None] < low[None, :]) & (high[:, None] > high[None, :])).sum())
    return count
