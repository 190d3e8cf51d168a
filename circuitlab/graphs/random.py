"""Random connected circuits of a given size: what a circuit of that size does by chance."""

import numpy as np
from jaxtyping import Bool

from circuitlab.errors import GraphError
from circuitlab.graphs.prune import kept_nodes, prune, real_edges
from circuitlab.parts import Layout

# Walks find ever less that is new: the last edges of GPT-2's 32,491 took them 16 s, and half of Llama-3.1-8B's 22 s.
MOST_WALKED = 20_000


def random_circuit(layout: Layout, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "writer reader"]:
    """A random set of exactly `n_edges` edges, each on a path from the input to the logits.

    Random walks from the input to the logits are added until there are enough edges; past half of the graph, or
    `MOST_WALKED`, random edges between the nodes that the walks have reached. Then edges are taken away at random
    wherever the rest stays connected.

    Args:
        layout: The graph.
        n_edges: How many edges, after pruning.
        rng: All randomness comes from it.

    Returns:
        The mask; the same generator state gives the same one.

    Raises:
        GraphError: The graph has fewer edges, or `n_edges` is below 1.
    """
    if not 1 <= n_edges <= layout.n_edges:
        raise GraphError(f"a random circuit of {n_edges} edges is not possible; the graph has {layout.n_edges}.")
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    walks = _Walks(layout)
    size, walked = 0, min(layout.n_edges / 2, MOST_WALKED)
    while size < n_edges:
        for row, column in walks.walk(rng):
            size += not mask[row, column]
            mask[row, column] = True
        if walked <= size < n_edges:
            size += _filled(mask, layout, n_edges - size, rng)
    return _thinned(mask, layout, n_edges, rng)


def random_path(layout: Layout, rng: np.random.Generator) -> list[tuple[int, int]]:
    """One random walk from the input to the logits, as (row, column) of its edges.

    Args:
        layout: The graph.
        rng: All randomness comes from it.

    Returns:
        Row (writer) and column (reader) of each edge, from the input on.
    """
    return _Walks(layout).walk(rng)


class _Walks:
    """Random walks along edges from the input to the logits."""

    def __init__(self, layout: Layout) -> None:
        self._owner = layout.owners
        self._readers = [np.flatnonzero(row).tolist() for row in real_edges(layout)]
        self._end = len(layout.writers)

    def walk(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        node, edges = 0, []
        while node != self._end:
            readers = self._readers[node]
            column = readers[rng.integers(len(readers))]
            edges.append((node, column))
            node = self._owner[column]
        return edges


def _filled(mask: np.ndarray, layout: Layout, wanted: int, rng: np.random.Generator) -> int:
    """Add up to so many random edges between nodes of a connected mask, in place; how many there were to add."""
    kept = kept_nodes(mask, layout)
    free = real_edges(layout) & ~mask & kept[:-1, None] & kept[np.array(layout.owners)]
    added = rng.permutation(np.flatnonzero(free))[:wanted]
    np.put(mask, added, True)
    return len(added)


def _thinned(mask: np.ndarray, layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Take edges away from a connected mask until exactly `n_edges` are left and all are connected."""
    owner = np.array(layout.owners)
    while mask.sum() > n_edges:
        for row, column in rng.permutation(np.argwhere(mask)).tolist():
            smaller = mask.copy()
            smaller[row, column] = False
            if not _holds_without(mask, row, column, owner):
                smaller = prune(smaller, layout)
            if n_edges <= smaller.sum() < mask.sum():
                mask = smaller
                break
        else:
            # No single edge can go without taking too many with it: begin again from the shortest path there is.
            return _grown(layout, n_edges, rng)
    return mask


def _holds_without(mask: np.ndarray, row: int, column: int, owner: np.ndarray) -> bool:
    """Whether a connected mask stays connected without one of its edges; only the two ends of the edge are checked."""
    writes_on = row == 0 or mask[row].sum() > 1
    still_reads = owner[column] == len(mask) or mask[:, owner == owner[column]].sum() > 1
    return bool(writes_on and still_reads)


def _grown(layout: Layout, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Add single edges and one-node paths to a small circuit until the number is met exactly.

    An odd and an even number need different beginnings (input -> logits is one edge, input -> node -> logits are two).
    """
    candidates, owner = rng.permutation(np.argwhere(real_edges(layout))), np.array(layout.owners)
    for direct in rng.permutation([True, False]):
        mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
        mask[0, -1] = direct
        left, stuck = n_edges - int(direct), False
        while left > 0 and not stuck:
            takes = _edges_taken(mask, candidates, owner)
            fitting = np.flatnonzero((takes > 0) & (takes <= left))
            stuck = len(fitting) == 0
            if not stuck:
                row, column = candidates[fitting[0]].tolist()
                _add_path(mask, row, column, owner)
                left -= int(takes[fitting[0]])
        if left == 0:
            return mask
    raise GraphError(f"no connected circuit of exactly {n_edges} edges was found in this graph.")


def _edges_taken(mask: np.ndarray, candidates: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """How many edges each candidate would bring with its ties to the input and the logits; 0 where it is no choice."""
    rows, columns = candidates.T
    n_writers = len(mask)
    reads, writes = np.zeros(n_writers + 1, dtype=bool), np.ones(n_writers + 1, dtype=bool)
    reads[owner[mask.any(0)]], reads[0] = True, True
    writes[:n_writers] = mask.any(1)
    takes = 1 + ~reads[rows] + ~writes[owner[columns]]
    direct = (rows == 0) & (columns == mask.shape[1] - 1)  # it is there from the beginning or never
    return np.where(mask[rows, columns] | direct, 0, takes)


def _add_path(mask: np.ndarray, row: int, column: int, owner: np.ndarray) -> None:
    """Add one edge, in place, and tie its ends to the input and the logits where they hang."""
    reads_nothing = row > 0 and not mask[:, owner == row].any()
    writes_nothing = owner[column] < len(mask) and not mask[owner[column]].any()
    mask[row, column] = True
    if reads_nothing:
        mask[0, np.flatnonzero(owner == row)[0]] = True
    if writes_nothing:
        mask[owner[column], -1] = True
