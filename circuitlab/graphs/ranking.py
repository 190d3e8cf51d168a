"""Edges in order of a number: which are the best so many."""

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitlab.parts import Layout


def edge_places(layout: Layout) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge, in the order of `Layout.edges`."""
    columns = np.repeat(np.arange(len(layout.visible)), layout.visible)
    rows = np.concatenate([np.arange(visible) for visible in layout.visible])
    return np.stack([rows, columns], axis=1)


def ranked_edges(keys: Float[np.ndarray, "writer reader"], layout: Layout) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge, largest key first; ties stand in the order of `Layout.edges`, NaN comes last."""
    places = edge_places(layout)
    return places[np.argsort(-keys[places[:, 0], places[:, 1]], kind="stable")]


def mask_of(places: Int[np.ndarray, "kept 2"], layout: Layout) -> Bool[np.ndarray, "writer reader"]:
    """The mask that keeps just these edges."""
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    mask[places[:, 0], places[:, 1]] = True
    return mask
