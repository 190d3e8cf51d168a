"""The content of a circuit: which edges of a model are kept, with every edge's score. Files are read into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.errors import GraphError
from circuitlab.graphs.node_parts import NodeParts
from circuitlab.graphs.prune import kept_nodes, real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.graphs.selection import Selection
from circuitlab.parts import Edge, Layout, ModelSpec, Node
from circuitlab.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CircuitData(Result):
    """What a circuit and a circuit file hold: kept edges of one model, and every edge's score. Immutable.

    The fields are those of `Circuit`, which adds files and pictures.

    Raises:
        GraphError: A matrix has the wrong shape, or the mask keeps an edge that the model does not have.
    """

    spec: ModelSpec
    mask: Bool[np.ndarray, "writer reader"]
    scores: Float[np.ndarray, "writer reader"]
    node_effects: Mapping[str, float] = field(default_factory=dict)
    selection: Selection | None = None
    node_parts: NodeParts = field(default_factory=NodeParts)
    second_scores: Float[np.ndarray, "writer reader"] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.layout.writers), len(self.layout.readers))
        matrices = {"mask": self.mask, "scores": self.scores, "second_scores": self.second_scores}
        given = {name: matrix for name, matrix in matrices.items() if matrix is not None}
        for name, matrix in given.items():
            if matrix.shape != shape:
                raise GraphError(
                    f"{name} has shape {matrix.shape}; model {self.spec.name!r} has {shape} writers, readers."
                )
        if bool((self.mask & ~real_edges(self.layout)).any()):
            raise GraphError(f"the mask keeps edges that model {self.spec.name!r} does not have.")
        self.node_parts.check(self.layout)
        # Copies of its own, so that nothing that is done with the originals changes the circuit.
        for name, matrix in given.items():
            own = matrix.copy()
            own.setflags(write=False)
            object.__setattr__(self, name, own)
        object.__setattr__(self, "node_effects", dict(self.node_effects))

    @property
    def layout(self) -> Layout:
        """Numbers of writers and readers."""
        return Layout.of(self.spec)

    @property
    def n_edges(self) -> int:
        """Kept edges."""
        return int(self.mask.sum())

    @property
    def n_unscored(self) -> int:
        """Kept edges without a score (NaN)."""
        return int(np.isnan(self.scores[self.mask]).sum())

    @property
    def n_edges_weighted(self) -> float:
        """Kept edges, each counted by the share of its source's neurons that is kept; `n_edges` where all are.

        References:
            Mueller et al. 2025 (MIB), arXiv:2504.13151: the weighted edge count.
        """
        neurons = self.node_parts.neurons
        shares = 1.0 if neurons is None else neurons.mean(1)
        return float((self.mask.sum(1) * shares).sum())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes with a kept edge."""
        kept = kept_nodes(self.mask, self.layout)
        return tuple(node for node, keep in zip(self.layout.nodes, kept, strict=True) if keep)

    def edges(self) -> Iterator[tuple[Edge, float]]:
        """Kept edges with their scores, in the order of `Layout.edges`."""
        for edge, (row, column) in zip(self.layout.edges(), edge_places(self.layout), strict=True):
            if self.mask[row, column]:
                yield edge, float(self.scores[row, column])

    def to_frame(self) -> pd.DataFrame:
        """Every edge of the graph: source, target, score, in_circuit, and second_score where there are any.

        Returns:
            One row an edge, in the order of `Layout.edges`.
        """
        import pandas as pd

        rows, columns = edge_places(self.layout).T
        edges = list(self.layout.edges())
        return pd.DataFrame(
            {
                "source": [edge.source.name for edge in edges],
                "target": [edge.reader.name for edge in edges],
                "score": self.scores[rows, columns],
                "in_circuit": self.mask[rows, columns],
                **({} if self.second_scores is None else {"second_score": self.second_scores[rows, columns]}),
            }
        )
