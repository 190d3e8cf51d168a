"""A circuit: which edges of a model are kept, with every edge's score."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from circuitlab.arguments import checked
from circuitlab.drawing import draw
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.prune import prune
from circuitlab.parts import ModelSpec
from circuitlab.summary import largest, plural, short

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Circuit(CircuitData):
    """Kept edges of one model. Immutable: nothing that is done with a circuit changes it.

    Attributes:
        spec: The model's shape.
        mask: Kept edges, by the numbers of `Layout`.
        scores: Score of every edge, positive where it helps; NaN where it was never scored, 0 where there is no edge.
        node_effects: Node name -> effect of patching that node alone (0 corrupted, 1 clean), where it was swept.
        selection: How it was selected, where `select` did it.
        node_parts: Scores of nodes, and scores and choice of neurons, where a file or a method gives them.
        second_scores: Secondary scores of edges that a search did not visit, which rank below all others; NaN for
            all others, None where there are none.

    Raises:
        GraphError: A matrix has the wrong shape, or the mask keeps an edge that the model does not have.

    Example:
        >>> from circuitlab import load_model, load_task, score_edges, select
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> circuit = select(model, scores, pairs.discovery, n_edges=20)
        >>> circuit.mask.shape, circuit.n_edges <= 20
        ((37, 101), True)
    """

    def pruned(self) -> Circuit:
        """The circuit without edges that lie on no path from the input to the logits.

        Returns:
            A new circuit.
        """
        return replace(self, mask=prune(self.mask, self.layout), node_parts=replace(self.node_parts, kept=None))

    @checked
    def with_mask(self, mask: Bool[np.ndarray, "writer reader"]) -> Circuit:
        """The same scores with other edges kept, and no choice of neurons.

        Returns:
            A new circuit.
        """
        return replace(self, mask=mask, selection=None, node_parts=self.node_parts.scores_only())

    def with_node_effects(self, effects: Mapping[str, float]) -> Circuit:
        """The circuit with swept effects on its nodes.

        Returns:
            A new circuit.
        """
        return replace(self, node_effects=effects)

    @checked
    def to_networkx(self, collapse: bool = False) -> nx.MultiDiGraph | nx.DiGraph:
        """Kept nodes and edges for networkx.

        Args:
            collapse: False: a `MultiDiGraph`, one edge per slot, its key the full edge name. True: a `DiGraph`, one
                edge per pair of nodes, `score` the sum over slots.

        Returns:
            Node attributes kind, layer, head, sweep_effect (where they exist); edge attributes slot, score.
        """
        from circuitlab.graphs.files.networks import to_networkx

        return to_networkx(self, collapse)

    @checked
    def save(self, path: str | Path) -> None:
        """Write a file in the format given by its suffix, atomically.

        `.json` and `.pt` are the formats of MIB / EAP-IG and hold everything; `.graphml`, `.node-link.json` and `.dot`
        hold the kept edges with their scores, `.txt` their names, one a line.

        Args:
            path: The file; a folder that is not there is made, `~` is the home folder.

        Raises:
            FormatError: The name ends in none of these.
            ConfigError: Nothing can be written there: a folder has this name, a file is in the way, or it is not
                allowed.
        """
        from circuitlab.graphs.files.formats import save_circuit

        save_circuit(self, Path(path))

    def plot(self, title: str = "") -> Any:
        """A drawing as a matplotlib `Figure`: input at the bottom, logits at the top.

        Returns:
            The figure.
        """
        return draw(self, title=title)

    def to_record(self) -> dict[str, Any]:
        """The circuit for JSON.

        Returns:
            The shape of the model, how the circuit was selected, and the rows of `to_frame`, every edge of the graph.
        """
        selection = self.selection and self.selection.to_record()
        return CircuitData.to_record(self) | {"n_edges": self.n_edges, "selection": selection}

    def _summary(self) -> str:
        total, nodes = self.layout.n_edges, plural(len(self.nodes), "node")
        return f"of {short(self.spec.name, 30)}: {self.n_edges:,} of {plural(total, 'edge')}, {nodes}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        if self.selection is not None:
            yield "selected by", f"{self.selection.rule} {short(self.selection.asked)}"
            if self.selection.faithfulness is not None:
                yield "faithfulness", f"{self.selection.faithfulness:.4g} on the discovery pairs"
            if self.selection.warnings:
                yield "warning", self.selection.warnings[0]
        if self.node_parts.neurons is not None:
            yield "neurons", f"{self.n_edges_weighted:,.1f} edges by the share of neurons kept"
        yield "nodes", " ".join(node.name for node in self.nodes)
        places = np.argwhere(self.mask)
        scores = self.scores[self.mask].tolist()
        yield from largest(scores, lambda number: self.layout.edge_name(*places[number].tolist()))


@checked
def load_circuit(path: str | Path, spec: ModelSpec | None = None) -> Circuit:
    """Read a circuit that circuitlab or another program wrote.

    By its name and content a file is taken for the `.json` or `.pt` of MIB / EAP-IG (the latter loaded as weights
    only), GraphML, node-link JSON, a JSON list of edges, or a `.txt` with an edge a line. Edges of lists are spelt as
    EAP-IG, auto-circuit or ACDC spell them; see docs/interchange.md.

    Args:
        path: The file, or a run folder that holds `circuit.json`; `~` is the home folder.
        spec: Shape of the model it must fit; without it the file's own `cfg` is believed. Formats without a `cfg` need
            it.

    Returns:
        The circuit, with its selection, the effects of its nodes and records of nodes and neurons if the file
        has them. Edges of a list have no score (NaN).

    Raises:
        FormatError: The file is missing, in none of the formats, lacks a key, names an unknown node or edge, holds
            something else than true or false for `in_graph` or than a number for a score, describes a graph too large
            to hold, or belongs to a model of another shape.

    Example:
        >>> from circuitlab import load_circuit
        >>> circuit = load_circuit("runs/throw")  # doctest: +SKIP
    """
    from circuitlab.graphs.files.formats import read_circuit

    found = read_circuit(Path(os.path.expanduser(path)), spec)
    return Circuit(**{item.name: getattr(found, item.name) for item in fields(found)})
