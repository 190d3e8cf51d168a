"""Edges in order of a number: which are the best so many."""

from heapq import heapify, heappop, heappush

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitlab.parts import Layout


def edge_places(layout: Layout) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge, in the order of `Layout.edges`.

    Returns:
        Row (writer) and column (reader) of each edge.
    """
    columns = np.repeat(np.arange(len(layout.visible)), layout.visible)
    rows = np.concatenate([np.arange(visible) for visible in layout.visible])
    return np.stack([rows, columns], axis=1)


def ranked_edges(
    keys: Float[np.ndarray, "writer reader"], layout: Layout, second: Float[np.ndarray, "writer reader"] | None = None
) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge, largest key first; ties in the order of `Layout.edges`, NaN last.

    Args:
        keys: What edges are ranked by.
        layout: Numbers of writers and readers.
        second: A second key of the edges that have no first one; NaN for all others. They come after all others.

    Returns:
        Row (writer) and column (reader) of each edge.
    """
    places = edge_places(layout)
    first = keys[places[:, 0], places[:, 1]]
    if second is None:
        return places[np.argsort(-first, kind="stable")]
    later = second[places[:, 0], places[:, 1]]
    return places[np.lexsort((-np.where(np.isnan(later), first, later), ~np.isnan(later)))]


def greedy_edges(
    keys: Float[np.ndarray, "writer reader"],
    layout: Layout,
    second: Float[np.ndarray, "writer reader"] | None = None,
    candidates: Bool[np.ndarray, "writer reader"] | None = None,
) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge in the order in which a circuit grows from the logits.

    1. The edges into the logits wait.
    2. The one with the largest key is taken; if its source was not reached before, the edges into it wait too.
    3. And so on, until none waits. The first n make the circuit of n edges.

    It only ever compares edges whose readers are in the circuit, so it serves keys that are shares of one reader's
    input. Equals the greedy selection of EAP-IG's graph, ties broken in the order of `Layout.edges`; NaN comes last.

    Args:
        keys: What edges are ranked by.
        layout: Numbers of writers and readers.
        second: As in `ranked_edges`.
        candidates: Edges that may be taken; all by default.

    Returns:
        Row (writer) and column (reader) of each edge.

    References:
        Hanna et al. 2024, arXiv:2403.17806; needed by Ferrando and Voita 2024, arXiv:2403.00824.
    """
    ranked = ranked_edges(keys, layout, second)
    if candidates is not None:
        ranked = ranked[candidates[ranked[:, 0], ranked[:, 1]]]
    into: dict[int, list[int]] = {}
    for rank, column in enumerate(ranked[:, 1].tolist()):
        into.setdefault(layout.owners[column], []).append(rank)
    logits = len(layout.writers)
    waiting = list(into.get(logits, []))
    heapify(waiting)
    reached, order = {logits}, []
    while waiting:
        rank = heappop(waiting)
        order.append(rank)
        source = int(ranked[rank, 0])
        if source not in reached:
            reached.add(source)
            for more in into.get(source, []):
                heappush(waiting, more)
    return ranked[order]


def mask_of(places: Int[np.ndarray, "kept 2"], layout: Layout) -> Bool[np.ndarray, "writer reader"]:
    """The mask that keeps just these edges.

    Returns:
        A new mask.
    """
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    mask[places[:, 0], places[:, 1]] = True
    return mask
