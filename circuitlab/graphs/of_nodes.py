"""Circuits given as nodes: the circuit of all edges among them, and their overlap with another circuit's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitlab.arguments import checked
from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune
from circuitlab.parts import Layout, ModelSpec, Node
from circuitlab.result import Result

if TYPE_CHECKING:
    import pandas as pd


@checked
def circuit_of_nodes(spec: ModelSpec, nodes: Iterable[str]) -> Circuit:
    """The circuit of every edge among some nodes, the input and the logits.

    Args:
        spec: The model's shape.
        nodes: Names of heads and MLPs, such as `a5.h1` and `m3`.

    Returns:
        The circuit, pruned to edges on a path from input to logits, without scores (NaN).

    Raises:
        GraphError: The model lacks one of the nodes, or no path leads through them.

    Example:
        >>> from circuitlab import load_model
        >>> from circuitlab.graphs.of_nodes import circuit_of_nodes
        >>> circuit = circuit_of_nodes(load_model("bundled").spec, ["a0.h1", "m3"])
        >>> [node.name for node in circuit.nodes]
        ['input', 'a0.h1', 'm3', 'logits']
    """
    layout, wanted = Layout.of(spec), set(nodes)
    if lacking := sorted(wanted - {node.name for node in layout.nodes}):
        raise GraphError(f"the model has no node {lacking[0]}; it has {spec.n_layers} layers of {spec.n_heads} heads.")
    wanted |= {"input", "logits"}
    writers = np.array([node.name in wanted for node in layout.writers])
    readers = np.array([reader.node.name in wanted for reader in layout.readers])
    mask = prune(writers[:, None] & readers[None, :], layout)
    return Circuit(spec=spec, mask=mask, scores=np.where(mask, np.nan, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NodeOverlap(Result):
    """Heads and MLPs of a circuit beside a list of nodes, such as a published circuit.

    Only nodes of the kinds in the list count: a list of heads says nothing about MLPs.

    Attributes:
        names: What the circuit and the list are called.
        classes: Class -> nodes of the list.
        found: The circuit's nodes of these kinds.
        n_nodes: Nodes of these kinds that the model has.
    """

    names: tuple[str, str]
    classes: Mapping[str, tuple[str, ...]]
    found: tuple[str, ...]
    n_nodes: int

    @property
    def listed(self) -> tuple[str, ...]:
        """All nodes of the list."""
        return tuple(name for nodes in self.classes.values() for name in nodes)

    @property
    def shared(self) -> tuple[str, ...]:
        """Nodes of both."""
        return tuple(name for name in self.listed if name in self.found)

    @property
    def precision(self) -> float:
        """Share of the circuit's nodes that are listed; NaN if it has none."""
        return len(self.shared) / len(self.found) if self.found else float("nan")

    @property
    def recall(self) -> float:
        """Share of the listed nodes that the circuit has."""
        return len(self.shared) / len(self.listed)

    @property
    def jaccard(self) -> float:
        """Shared nodes as a share of those that either has."""
        return len(self.shared) / len({*self.listed, *self.found})

    @property
    def expected(self) -> float:
        """Mean number of shared nodes if the circuit's were drawn at random."""
        return len(self.found) * len(self.listed) / self.n_nodes

    @property
    def p_value(self) -> float:
        """Probability that as many nodes drawn at random share at least as many with the list (hypergeometric)."""
        from scipy.stats import hypergeom

        return float(hypergeom.sf(len(self.shared) - 1, self.n_nodes, len(self.listed), len(self.found)))

    def to_frame(self) -> pd.DataFrame:
        """Every node of either: node, class (empty if not listed), listed, in_circuit.

        Returns:
            The table.
        """
        import pandas as pd

        of_class = {name: label for label, nodes in self.classes.items() for name in nodes}
        names = [*self.listed, *(name for name in self.found if name not in of_class)]
        return pd.DataFrame(
            {
                "node": names,
                "class": [of_class.get(name, "") for name in names],
                "listed": [name in of_class for name in names],
                "in_circuit": [name in self.found for name in names],
            }
        )

    def to_record(self) -> dict[str, Any]:
        """The overlap as plain values.

        Returns:
            The record; numbers that are not defined are left out.
        """
        numbers = ("precision", "recall", "jaccard", "expected", "p_value")
        return {
            "names": list(self.names),
            "n_nodes": self.n_nodes,
            "n_circuit": len(self.found),
            "n_listed": len(self.listed),
            "shared": list(self.shared),
            **{name: getattr(self, name) for name in numbers if getattr(self, name) == getattr(self, name)},
            "classes": {
                label: {"listed": list(nodes), "in_circuit": [name for name in nodes if name in self.found]}
                for label, nodes in self.classes.items()
            },
        }

    def _summary(self) -> str:
        return f"of {self.names[0]} and {self.names[1]}: {len(self.shared)} of {len(self.listed)} nodes"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "precision", f"{self.precision:.3f}"
        yield "recall", f"{self.recall:.3f}"
        yield "by chance", f"{self.expected:.1f} expected, p = {self.p_value:.2g}"


@checked
def node_overlap(
    circuit: Circuit, classes: Mapping[str, Sequence[str]], names: tuple[str, str] = ("circuit", "list")
) -> NodeOverlap:
    """Compare a circuit's heads and MLPs with a list of nodes.

    Args:
        circuit: The circuit; its nodes are those with a kept edge.
        classes: Class -> names of heads and MLPs; `PublishedCircuit.classes`.
        names: What the two are called.

    Returns:
        Overlap, precision, recall, and how likely as large an overlap is by chance.

    Raises:
        GraphError: The list is empty, or the model lacks one of its nodes.

    Example:
        >>> from circuitlab import load_model
        >>> from circuitlab.graphs.of_nodes import circuit_of_nodes, node_overlap
        >>> circuit = circuit_of_nodes(load_model("bundled").spec, ["a0.h1", "m3"])
        >>> node_overlap(circuit, {"mover": ["a0.h1", "a1.h1"]}).recall
        0.5
    """
    layout = circuit.layout
    listed = [Node.parse(name) for nodes in classes.values() for name in nodes]
    if not listed:
        raise GraphError(f"{names[1]!r} lists no node. Give at least one.")
    if lacking := [node.name for node in listed if node not in layout.nodes]:
        raise GraphError(
            f"{names[1]!r} lists {lacking[0]}, which the model of {names[0]!r} does not have: it has "
            f"{circuit.spec.n_layers} layers of {circuit.spec.n_heads} heads."
        )
    kinds = {node.kind for node in listed}
    return NodeOverlap(
        names=names,
        classes={label: tuple(nodes) for label, nodes in classes.items()},
        found=tuple(node.name for node in circuit.nodes if node.kind in kinds),
        n_nodes=sum(node.kind in kinds for node in layout.nodes),
    )
