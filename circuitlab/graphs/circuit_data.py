"""The content of a circuit: which edges of a model are kept, with every edge's score. Files are read into it.

Edges decide what a circuit is. Records of nodes and neurons, the entries of a writer's output, are preserved so that
files round-trip without loss: a node's own `in_graph` follows from the edges unless a file states it, and is then only
carried along, as in EAP-IG, which prunes by edges only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Shaped

from circuitlab.errors import GraphError
from circuitlab.graphs.prune import kept_nodes, real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.graphs.selection import Selection
from circuitlab.parts import Edge, Layout, ModelSpec, Node
from circuitlab.result import Result
from circuitlab.summary import Summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NodeParts(Summary):
    """Matrices indexed as in `Layout`; None if absent.

    Attributes:
        kept: Writers that a file marks as part of the circuit, if that differs from what its edges imply.
        scores: Scores of writers, positive where they help; NaN: not scored, always kept.
        neurons: Which entries of each writer's output are part of the circuit.
        neuron_scores: Scores of these entries; NaN: not scored, always kept.
    """

    kept: Bool[np.ndarray, " writer"] | None = None
    scores: Float[np.ndarray, " writer"] | None = None
    neurons: Bool[np.ndarray, "writer d_model"] | None = None
    neuron_scores: Float[np.ndarray, "writer d_model"] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            given = getattr(self, item.name)
            if given is not None:
                copy = given.copy()
                copy.setflags(write=False)
                object.__setattr__(self, item.name, copy)

    def check(self, layout: Layout) -> None:
        """Refuse matrices of another model.

        Raises:
            GraphError: A matrix has the wrong shape.
        """
        n_writers, d_model = len(layout.writers), layout.spec.d_model
        for item in fields(self):
            given = getattr(self, item.name)
            shape = (n_writers, d_model) if item.name in ("neurons", "neuron_scores") else (n_writers,)
            if given is not None and given.shape != shape:
                raise GraphError(
                    f"node_parts.{item.name} has shape {given.shape}; model {layout.spec.name!r} wants {shape}."
                )

    def scores_only(self) -> NodeParts:
        """The same scores with nothing selected: for another selection of edges.

        Returns:
            A new record.
        """
        return replace(self, kept=None, neurons=None)

    def split(self, mask: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, " writer"]:
        """Writers with a kept edge of which only some neurons are kept.

        Returns:
            True for writers of which some neurons are kept and some are not.
        """
        writes = np.asarray(mask.any(1))
        return np.zeros_like(writes) if self.neurons is None else np.asarray(writes & ~self.neurons.all(1))


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
            copy = matrix.copy()
            copy.setflags(write=False)
            object.__setattr__(self, name, copy)
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
        return edge_table(self.layout, score=self.scores, in_circuit=self.mask, second_score=self.second_scores)


def edge_table(layout: Layout, **matrices: Shaped[np.ndarray, "writer reader"] | None) -> pd.DataFrame:
    """A table of all edges with the entries of matrices.

    Args:
        layout: The graph.
        matrices: Column -> matrix; None adds none.

    Returns:
        One row an edge, in the order of `Layout.edges`: source, target, and the columns.
    """
    import pandas as pd

    places, edges = tuple(edge_places(layout).T), list(layout.edges())
    ends = {"source": [edge.source.name for edge in edges], "target": [edge.reader.name for edge in edges]}
    return pd.DataFrame(ends | {name: matrix[places] for name, matrix in matrices.items() if matrix is not None})
