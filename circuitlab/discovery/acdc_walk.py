"""The order in which ACDC tests edges, and the edges that it cuts untested.

From the logits backwards, node by node: layer by layer from the last, a layer's MLP before its heads, heads from the
last to the first. Of a head first what enters its values, then its keys, then its queries; into each reader, from its
last writer to the input. This is `Layout.edges` from its end with the slots of a head kept together.

Edges into a node without outgoing edges are cut untested. A node without incoming edges is cut out of later nodes, and
these, if they have no other incoming edge, out of those after them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Kind, Layout

# Row and column of an edge in a mask.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a walk: a node is entered, an edge is tested, or a node is left.

    Attributes:
        kind: "enter", "ask" or "leave".
        node: Number of the node among `Layout.nodes`.
        edge: The edge to test.
    """

    kind: str
    node: int
    edge: Place | None = None


def steps_of(layout: Layout) -> tuple[Step, ...]:
    """All steps of a search, in their fixed order.

    Returns:
        The steps.
    """
    found = list[Step]()
    for number, node in reversed(list(enumerate(layout.nodes))):
        if node.kind is Kind.INPUT:
            continue
        edges = [(row, column) for column in reversed(layout.readers_of(node))
                 for row in reversed(range(layout.visible[column]))]  # fmt: skip
        found += [Step("enter", number), *(Step("ask", number, edge) for edge in edges), Step("leave", number)]
    return tuple(found)


@dataclass(slots=True, eq=False)
class Walk:
    """The progress of a search; copied to look ahead.

    Attributes:
        layout: Numbers of writers and readers.
        steps: All steps.
        mask: Edges that are kept so far.
        at: The next step.
        cut_unasked: Whether edges were cut untested since the last call of `question`.
    """

    layout: Layout
    steps: tuple[Step, ...]
    mask: Bool[np.ndarray, "writer reader"]
    at: int = 0
    cut_unasked: bool = False

    @classmethod
    def from_all(cls, layout: Layout) -> Walk:
        """A walk at its start, with every edge kept.

        Returns:
            The walk.
        """
        return cls(layout, steps_of(layout), real_edges(layout))

    def copy(self) -> Walk:
        """A copy of this walk.

        Returns:
            A walk that continues independently.
        """
        return Walk(self.layout, self.steps, self.mask.copy(), self.at, self.cut_unasked)

    def question(self) -> Place | None:
        """Continue to the next edge to test, and cut edges that need no test.

        Returns:
            The edge; None at the end.
        """
        while self.at < len(self.steps):
            step = self.steps[self.at]
            if step.kind == "ask":
                return step.edge
            if step.kind == "leave":
                self._cut_redundant(step.node)
            elif step.node < len(self.layout.writers) and not self.mask[step.node].any():
                self._cut(slice(None), self._columns(step.node))
                self.at = self.steps.index(Step("leave", step.node), self.at)
            self.at += 1
        return None

    def without(self, edge: Place) -> Bool[np.ndarray, "writer reader"]:
        """The kept edges without this one.

        Returns:
            The mask.
        """
        mask = self.mask.copy()
        mask[edge] = False
        return mask

    def answer(self, edge: Place, cut: bool) -> None:
        """Set the outcome of the last test, and continue."""
        assert self.steps[self.at].edge == edge
        if cut:
            self.mask[edge] = False
        self.at += 1

    def _cut_redundant(self, node: int) -> None:
        """Cut a node without incoming edges out of later nodes, recursively."""
        if node == len(self.layout.writers) or self.mask[:, self._columns(node)].any():
            return
        later = {self.layout.owners[column] for column in np.flatnonzero(self.mask[node])}
        self._cut(node, slice(None))
        for other in sorted(later):
            self._cut_redundant(other)

    def _cut(self, rows: int | slice, columns: slice | list[int]) -> None:
        if self.mask[rows, columns].any():
            self.mask[rows, columns] = False
            self.cut_unasked = True

    def _columns(self, node: int) -> list[int]:
        return list(self.layout.readers_of(self.layout.nodes[node]))
