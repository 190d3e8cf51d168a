"""Two circuits of one model side by side: what both keep, what each keeps alone, and how alike their scores rank.

Circuits may also be given as nodes: the circuit of all edges among them, and their overlap with a circuit's nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuitlab.arguments import checked
from circuitlab.drawing import draw
from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.files.mib_json import UNKNOWN
from circuitlab.graphs.prune import prune, real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge, Layout, ModelSpec, Node
from circuitlab.result import Result, plain
from circuitlab.summary import Summary, plural, short

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Comparison(Summary):
    """Two circuits compared.

    Attributes:
        names: What the two are called.
        first: The first circuit.
        second: The second circuit, of a model of the same shape.
        shared: Edges of both, in the order of `Layout.edges`, as are the next two.
        only_first: Edges of the first alone.
        only_second: Edges of the second alone.
        jaccard_edges: Shared edges as a share of those that either has; 1 for two empty circuits.
        jaccard_nodes: The same of nodes with a kept edge.
        spearman: Rank correlation of the signed scores over the edges that both have scored; NaN where a score is the
            same for all of them.
        kendall: Kendall's tau-b of the same.
        spearman_absolute: Spearman's of the absolute scores: what selection by absolute score ranks by.
        n_ranked: How many edges the correlations are over.
    """

    names: tuple[str, str]
    first: Circuit
    second: Circuit
    shared: tuple[Edge, ...]
    only_first: tuple[Edge, ...]
    only_second: tuple[Edge, ...]
    jaccard_edges: float
    jaccard_nodes: float
    spearman: float
    kendall: float
    spearman_absolute: float
    n_ranked: int

    def to_frame(self) -> pd.DataFrame:
        """Every edge that either keeps: edge, in_first, in_second, score_first, score_second.

        Returns:
            One row an edge.
        """
        import pandas as pd

        first, second = self.first.to_frame(), self.second.to_frame()
        found = pd.DataFrame(
            {
                "edge": [edge.name for edge in self.first.layout.edges()],
                "in_first": first["in_circuit"],
                "in_second": second["in_circuit"],
                "score_first": first["score"],
                "score_second": second["score"],
            }
        )
        return found.loc[found["in_first"] | found["in_second"]].reset_index(drop=True)

    def to_record(self) -> dict[str, Any]:
        """The comparison as plain values; what is not a number is null.

        Returns:
            The content of a JSON object.
        """
        counts = {
            "names": self.names,
            "n_edges": [self.first.n_edges, self.second.n_edges],
            "n_nodes": [len(self.first.nodes), len(self.second.nodes)],
            "n_shared": len(self.shared),
        }
        numbers = ("jaccard_edges", "jaccard_nodes", "spearman", "kendall", "spearman_absolute", "n_ranked")
        edges = ("shared", "only_first", "only_second")
        return plain(counts | {name: getattr(self, name) for name in (*numbers, *edges)})

    def plot(self, title: str = "") -> Any:
        """Both circuits in one drawing as a matplotlib `Figure`: edges of both dark, of one alone in its colour.

        Returns:
            The figure.
        """
        return draw(self, title=title)

    def _summary(self) -> str:
        first, second = (short(name, 20)[1:-1] for name in self.names)
        shared = plural(len(self.shared), "edge")
        return f"of {first} and {second}: {shared} shared, Jaccard index {self.jaccard_edges:.3f}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for name, circuit, only in zip(
            self.names, (self.first, self.second), (self.only_first, self.only_second), strict=True
        ):
            yield short(name, 22)[1:-1], f"{plural(circuit.n_edges, 'edge')}, {len(only):,} of its own"
        yield "nodes", f"Jaccard index {self.jaccard_nodes:.3f}"
        yield "scores", f"Spearman {self.spearman:.3f}, Kendall {self.kendall:.3f} over {plural(self.n_ranked, 'edge')}"
        yield "shared", " ".join(edge.name for edge in self.shared[:12]) or "none"


@checked
def compare(first: Circuit, second: Circuit, names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Set two circuits of one model side by side.

    Args:
        first: One circuit.
        second: The other.
        names: What they are called in tables and drawings.

    Returns:
        Their shared and own edges, Jaccard similarities, and rank correlations of scores.

    Raises:
        GraphError: They are of models of different shape.

    Example:
        >>> from circuitlab import compare, load_model, load_task, score_edges, select
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> small, large = (select(model, scores, pairs.discovery, n_edges=n) for n in (10, 20))
        >>> found = compare(small, large)
        >>> 0 < found.jaccard_edges < 1
        True
    """
    same = ("n_layers", "n_heads", "d_model", "parallel", "has_mlp")
    ours, theirs = ({name: getattr(c.spec, name) for name in same} for c in (first, second))
    if UNKNOWN in (ours["d_model"], theirs["d_model"]):
        ours["d_model"] = theirs["d_model"]
    if ours != theirs:
        what = next(name for name in same if ours[name] != theirs[name])
        raise GraphError(
            f"{names[0]!r} and {names[1]!r} are circuits of different graphs: {what} is {ours[what]} and "
            f"{theirs[what]}. Only circuits of one model can be compared."
        )
    places = [tuple(place) for place in edge_places(first.layout).tolist()]
    edges = list(zip(first.layout.edges(), places, strict=True))
    both, only_first, only_second = (
        tuple(edge for edge, place in edges if mask[place])
        for mask in (first.mask & second.mask, first.mask & ~second.mask, second.mask & ~first.mask)
    )
    nodes = set(first.nodes), set(second.nodes)
    scored = real_edges(first.layout) & np.isfinite(first.scores) & np.isfinite(second.scores)
    a, b = first.scores[scored], second.scores[scored]
    return Comparison(
        names=names,
        first=first,
        second=second,
        shared=both,
        only_first=only_first,
        only_second=only_second,
        jaccard_edges=jaccard(len(both), len(both) + len(only_first) + len(only_second)),
        jaccard_nodes=jaccard(len(nodes[0] & nodes[1]), len(nodes[0] | nodes[1])),
        spearman=_correlation("spearmanr", a, b),
        kendall=_correlation("kendalltau", a, b),
        spearman_absolute=_correlation("spearmanr", np.abs(a), np.abs(b)),
        n_ranked=len(a),
    )


def jaccard(n_shared: int, n_either: int) -> float:
    """Members of both sets as a share of the members of either; 1 for two empty sets.

    Returns:
        Between 0 and 1.
    """
    return n_shared / n_either if n_either else 1.0


def _correlation(name: str, a: Float[np.ndarray, " edge"], b: Float[np.ndarray, " edge"]) -> float:
    from scipy import stats

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(getattr(stats, name)(a, b).statistic)


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
        >>> from circuitlab.graphs.compare import circuit_of_nodes
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
        >>> from circuitlab.graphs.compare import circuit_of_nodes, node_overlap
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
