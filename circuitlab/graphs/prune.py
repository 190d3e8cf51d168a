"""Keep only what connects: every edge of a pruned circuit lies on a path from the input to the logits."""

import numpy as np
from jaxtyping import Bool

from circuitlab.parts import Layout


def real_edges(layout: Layout) -> Bool[np.ndarray, "writer reader"]:
    """Which entries of a mask are edges of the model.

    Returns:
        True where the graph has an edge.
    """
    return np.arange(len(layout.writers))[:, None] < np.array(layout.visible)


def prune(mask: Bool[np.ndarray, "writer reader"], layout: Layout) -> Bool[np.ndarray, "writer reader"]:
    """Drop edges from nodes that nothing reaches and edges to nodes that reach nothing, until none is left.

    Equals EAP-IG's `prune` (with both masks compared, its issues 16 and 17), as one forward and one backward pass over
    the nodes, which are in topological order.

    Returns:
        A new mask; the argument is not changed.
    """
    kept = mask & real_edges(layout)
    owner, n_writers = np.array(layout.owners), len(layout.writers)
    reached = np.zeros(n_writers + 1, dtype=bool)
    reached[0] = True
    for node in range(1, n_writers + 1):
        columns = owner == node
        reached[node] = bool((kept[:, columns] & reached[:-1, None]).any())
    reaches_logits = np.zeros(n_writers + 1, dtype=bool)
    reaches_logits[n_writers] = True
    for node in range(n_writers - 1, -1, -1):
        reaches_logits[node] = bool((kept[node] & reaches_logits[owner]).any())
    on_path = reached & reaches_logits
    return kept & on_path[:-1, None] & on_path[owner]


def kept_nodes(mask: Bool[np.ndarray, "writer reader"], layout: Layout) -> Bool[np.ndarray, " node"]:
    """Nodes with a kept edge, writers first and the logits last.

    Returns:
        True for nodes with a kept edge.
    """
    owner, n_writers = np.array(layout.owners), len(layout.writers)
    touched = np.zeros(n_writers + 1, dtype=bool)
    touched[:n_writers] = mask.any(1)
    touched[np.unique(owner[mask.any(0)])] = True
    return touched
