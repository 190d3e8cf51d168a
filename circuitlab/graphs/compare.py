"""Two circuits of one model side by side: what both keep, what each keeps alone, and how alike their scores rank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuitlab.arguments import checked
from circuitlab.drawing import draw
from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.files.mib_json import UNKNOWN
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge
from circuitlab.result import plain
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
