"""The order in which ACDC asks about edges, and what it takes away without asking.

From the logits backwards, node by node: layer by layer from the last, a layer's MLP before its heads, heads from the
last to the first. Of a head first what enters its values, then its keys, then its queries; into each reader, from its
last writer to the input. This is `Layout.edges` from its end with the slots of a head kept together.

Nothing is asked about a node that no kept edge leaves: what enters it is cut. A node that no kept edge enters any more
is cut out of the nodes behind it, and these, if it was all they heard, out of those behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Kind, Layout, Node

# Row and column of an edge in a mask.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way: a node is entered, an edge is asked about, a node is left.

    Attributes:
        kind: "enter", "ask" or "leave".
        node: Number of the node among `Layout.nodes`.
        edge: What is asked about.
    """

    kind: str
    node: int
    edge: Place | None = None


def steps_of(layout: Layout) -> tuple[Step, ...]:
    """All steps, in their fixed order."""
    found = list[Step]()
    for number, node in reversed(list(enumerate(layout.nodes))):
        if node.kind is Kind.INPUT:
            continue
        found.append(Step("enter", number))
        found += [Step("ask", number, place) for place in _into(layout, node)]
        found.append(Step("leave", number))
    return tuple(found)


def asking_order(layout: Layout) -> tuple[Place, ...]:
    """Every edge in the order in which it is asked about, as row and column of a mask."""
    return tuple(step.edge for step in steps_of(layout) if step.edge is not None)


def _into(layout: Layout, node: Node) -> Iterator[Place]:
    for column in reversed(layout.readers_of(node)):
        for row in reversed(range(layout.visible[column])):
            yield row, column


@dataclass(slots=True, eq=False)
class Walk:
    """How far a search has come; copied to look ahead.

    Attributes:
        layout: Numbers of writers and readers.
        steps: The way.
        mask: Edges that are kept so far.
        at: The next step.
        cut_unasked: Whether edges were cut without a question since the last call of `question`.
    """

    layout: Layout
    steps: tuple[Step, ...]
    mask: Bool[np.ndarray, "writer reader"]
    at: int = 0
    cut_unasked: bool = False

    @classmethod
    def from_all(cls, layout: Layout) -> Walk:
        """The beginning, with every edge kept."""
        return cls(layout, steps_of(layout), real_edges(layout))

    def copy(self) -> Walk:
        """The same place on the way, to go on from independently."""
        return Walk(self.layout, self.steps, self.mask.copy(), self.at, self.cut_unasked)

    def question(self) -> Place | None:
        """Go on to the next edge that is asked about; None at the end. Cuts what needs no question on the way."""
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
        """The kept edges but this one."""
        mask = self.mask.copy()
        mask[edge] = False
        return mask

    def answer(self, edge: Place, cut: bool) -> None:
        """Answer the question that was asked last, and go on."""
        assert self.steps[self.at].edge == edge
        if cut:
            self.mask[edge] = False
        self.at += 1

    def _cut_redundant(self, node: int) -> None:
        """Take a node without kept edges into it out of those behind it, and so on."""
        if node == len(self.layout.writers) or self.mask[:, self._columns(node)].any():
            return
        behind = {self.layout.owners[column] for column in np.flatnonzero(self.mask[node])}
        self._cut(node, slice(None))
        for other in sorted(behind):
            self._cut_redundant(other)

    def _cut(self, rows: int | slice, columns: slice | list[int]) -> None:
        if self.mask[rows, columns].any():
            self.mask[rows, columns] = False
            self.cut_unasked = True

    def _columns(self, node: int) -> list[int]:
        return list(self.layout.readers_of(self.layout.nodes[node]))
