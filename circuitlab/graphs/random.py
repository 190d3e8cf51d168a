"""Random connected circuits of a given size: what a circuit of that size does by chance."""

import numpy as np
from jaxtyping import Bool

from circuitlab.errors import GraphError
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.parts import Layout


def random_circuit(layout: Layout, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "writer reader"]:
    """A random set of exactly `n_edges` edges, each on a path from the input to the logits.

    Random walks from the input to the logits are added until there are enough edges; then edges are taken away at
    random wherever the rest stays connected.

    Args:
        layout: The graph.
        n_edges: How many edges, after pruning.
        rng: All randomness comes from it.

    Raises:
        GraphError: The graph has fewer edges than that, or none are asked for.
    """
    if not 1 <= n_edges <= layout.n_edges:
        raise GraphError(f"a random circuit of {n_edges} edges is not possible; the graph has {layout.n_edges}.")
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    walks = _Walks(layout)
    misses = 0
    while mask.sum() < n_edges:
        before = mask.sum()
        for row, column in walks.walk(rng):
            mask[row, column] = True
        misses = misses + 1 if mask.sum() == before else 0
        if misses > 200:  # a nearly full graph: walks find nothing new, so take any edge (all nodes are connected)
            row, column = rng.permutation(np.argwhere(real_edges(layout) & ~mask))[0]
            mask[row, column] = True
    return _thinned(mask, layout, n_edges, rng)


class _Walks:
    """Random walks along edges from the input to the logits."""

    def __init__(self, layout: Layout) -> None:
        self._owner = np.array(layout.owners)
        self._readers = [np.flatnonzero(row) for row in real_edges(layout)]
        self._end = len(layout.writers)

    def walk(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        node, edges = 0, []
        while node != self._end:
            column = int(rng.choice(self._readers[node]))
            edges.append((node, column))
            node = int(self._owner[column])
        return edges


def _thinned(mask: np.ndarray, layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Take edges away until exactly `n_edges` are left and all are connected."""
    mask = prune(mask, layout)
    while mask.sum() > n_edges:
        for row, column in rng.permutation(np.argwhere(mask)):
            smaller = mask.copy()
            smaller[row, column] = False
            smaller = prune(smaller, layout)
            if n_edges <= smaller.sum() < mask.sum():
                mask = smaller
                break
        else:
            # No single edge can go without taking too many with it: begin again from the shortest path there is.
            return _grown(layout, n_edges, rng)
    return mask


def _grown(layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Add single edges and one-node paths to a small circuit until the number is met exactly.

    An odd and an even number need different beginnings (input -> logits is one edge, input -> node -> logits are two).
    """
    candidates, owner = rng.permutation(np.argwhere(real_edges(layout))), np.array(layout.owners)
    for direct in rng.permutation([True, False]):
        mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
        mask[0, -1] = direct
        stuck = False
        while mask.sum() < n_edges and not stuck:
            short = (0, mask.shape[1] - 1)  # the direct edge is there from the beginning or never
            others = ((int(row), int(column)) for row, column in candidates if (row, column) != short)
            larger = (_with_path(mask, row, column, owner) for row, column in others)
            fitting = (m for m in (prune(m, layout) for m in larger) if mask.sum() < m.sum() <= n_edges)
            found = next(fitting, None)
            stuck = found is None
            mask = mask if found is None else found
        if mask.sum() == n_edges:
            return mask
    raise GraphError(f"no connected circuit of exactly {n_edges} edges was found in this graph.")


def _with_path(mask: np.ndarray, row: int, column: int, owner: np.ndarray) -> np.ndarray:
    """The mask with one edge more, and that edge's ends tied to the input and the logits."""
    larger = mask.copy()
    larger[row, column] = True
    reads_nothing = row > 0 and not larger[:, owner == row].any()
    if reads_nothing:
        larger[0, np.flatnonzero(owner == row)[0]] = True
    if owner[column] < len(mask) and not larger[owner[column]].any():
        larger[owner[column], -1] = True
    return larger
