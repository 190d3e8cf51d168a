"""Circuits as graphs for other programs: networkx, GraphML, node-link JSON, DOT. Kept edges only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitlab.errors import FormatError, in_one_line
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.files.mib_json import EFFECT, effect_of
from circuitlab.parts import Edge, Kind, Node

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(circuit: CircuitData, collapse: bool) -> nx.MultiDiGraph | nx.DiGraph:
    """See `Circuit.to_networkx`.

    Returns:
        The graph.
    """
    import networkx as nx

    graph = nx.DiGraph() if collapse else nx.MultiDiGraph()
    # read_graphml sets both defaults; with them here, a graph that was written and read again compares equal.
    graph.graph.update(model=circuit.spec.name, node_default={}, edge_default={})
    for node in circuit.nodes:
        graph.add_node(node.name, **_node_attributes(node, circuit.node_effects))
    sums: dict[tuple[str, str], float] = {}
    for edge, score in circuit.edges():
        source, target = edge.source.name, edge.reader.node.name
        if collapse:
            sums[source, target] = sums.get((source, target), 0.0) + score
            graph.add_edge(source, target, score=sums[source, target])
            continue
        # GraphML has no None: an edge into an MLP or the logits has no slot attribute value but the empty word.
        slot = edge.reader.slot.value if edge.reader.slot else ""
        graph.add_edge(source, target, key=edge.name, slot=slot, score=score)
    return graph


def _node_attributes(node: Node, effects: Mapping[str, float]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"kind": node.kind.value}
    if node.layer is not None:
        attributes["layer"] = node.layer
    if node.head is not None:
        attributes["head"] = node.head
    return {**attributes, **effect_of(node, effects)}


def write_graphml(circuit: CircuitData, path: Path) -> None:
    """GraphML that `networkx.read_graphml(path, force_multigraph=True)` reads back equal."""
    import networkx as nx

    nx.write_graphml(to_networkx(circuit, collapse=False), path, named_key_ids=True)


def node_link(circuit: CircuitData) -> str:
    """JSON that `networkx.node_link_graph(json.load(file), edges="edges")` reads back equal; NaN is written as NaN.

    Returns:
        The JSON text.
    """
    import networkx as nx

    return json.dumps(nx.node_link_data(to_networkx(circuit, collapse=False), edges="edges"), indent=1) + "\n"


def dot(circuit: CircuitData) -> str:
    """The graph in Graphviz's language, upwards: blue edges help, red ones hurt, grey ones have no score.

    Returns:
        The DOT text.
    """
    lines = [f"digraph {quoted(circuit.spec.name)} {{", "  rankdir=BT;"]
    for node in circuit.nodes:
        shape = {Kind.HEAD: "box", Kind.MLP: "box"}.get(node.kind, "ellipse")
        lines.append(f"  {quoted(node.name)} [kind={node.kind.value}, shape={shape}];")
    strongest = max((abs(score) for _, score in circuit.edges() if score == score), default=0.0)
    for edge, score in circuit.edges():
        scored = score == score
        width = 0.5 + 3 * (abs(score) / strongest if scored and strongest else 0.0)
        colour = "gray50" if not scored else "firebrick" if score < 0 else "steelblue"
        attributes = {
            "key": quoted(edge.name),
            **({"headlabel": edge.reader.slot.value} if edge.reader.slot else {}),
            **({"score": quoted(repr(score))} if scored else {}),
            "penwidth": f"{width:.3g}",
            "color": colour,
        }
        listed = ", ".join(f"{name}={value}" for name, value in attributes.items())
        lines.append(f"  {quoted(edge.source.name)} -> {quoted(edge.reader.node.name)} [{listed}];")
    return "\n".join([*lines, "}"]) + "\n"


def quoted(text: str) -> str:
    """A name as DOT takes any: in quotes, with quotes and backslashes in it escaped and line ends as spaces.

    Returns:
        The name in quotes.
    """
    return '"' + re.sub(r'(["\\])', r"\\\1", " ".join(text.splitlines())) + '"'


def graph_edges(graph: nx.MultiDiGraph) -> Iterator[tuple[str, float]]:
    """Full name and score of every edge of a graph made by `to_networkx`; NaN where it has no score.

    Raises:
        FormatError: An edge has no valid name or score.
    """
    for source, target, key, data in graph.edges(keys=True, data=True):
        slot = data.get("slot")
        name = f"{source}->{target}" + (f"<{slot}>" if slot else "")
        if isinstance(key, str) and "->" in key:
            edge = Edge.parse(key)
            named = edge.source.name, edge.reader.node.name, edge.reader.slot.value if edge.reader.slot else ""
            if named != (source, target, named[2] if slot is None else slot):
                raise FormatError(
                    f"edge {key!r} joins {source!r} and {target!r}, slot {slot!r}, which is another edge. "
                    "Correct its key or its ends."
                )
            name = key
        yield name, _number(data.get("score", float("nan")), f"edge {name!r}", "score")


def graph_effects(graph: nx.MultiDiGraph) -> dict[str, float]:
    """Swept effects of the nodes of such a graph.

    Returns:
        Effects by name of the node.
    """
    return {
        name: _number(data[EFFECT], f"node {name!r}", EFFECT) for name, data in graph.nodes(data=True) if EFFECT in data
    }


def _number(value: Any, what: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"{what}: its {name} is {str(value)[:40]!r}, a {type(value).__name__}; it must be a number.")
    try:
        return float(value)
    except OverflowError:
        raise FormatError(f"{what}: its {name} has {len(str(value))} digits, more than a float holds.") from None


def graph_of_graphml(text: str) -> nx.MultiDiGraph:
    """GraphML as a multigraph.

    Returns:
        The graph.

    Raises:
        FormatError: It is no GraphML.
    """
    import networkx as nx

    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FormatError(
            "it declares a document type, which GraphML has no need of and which can expand to gigabytes. Remove the "
            "declaration."
        )
    try:
        # Bytes, not text: the parser would take the text's own declaration of its encoding at its word.
        return nx.parse_graphml(re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1), force_multigraph=True)
    except Exception as error:  # of many kinds
        raise FormatError(f"it is no GraphML: {error}. Write it again.") from error


def graph_of_node_link(content: Mapping[str, Any]) -> nx.MultiDiGraph:
    """A node-link object as a multigraph; its edges are under `edges` or, in older files, `links`.

    Returns:
        The graph.

    Raises:
        FormatError: It is no node-link object.
    """
    import networkx as nx

    edges = "edges" if "edges" in content else "links"
    try:
        return nx.MultiDiGraph(nx.node_link_graph(dict(content), directed=True, multigraph=True, edges=edges))
    except Exception as error:  # of many kinds
        raise FormatError(f"it is no node-link JSON: {in_one_line(error, 160)}. Write it again.") from error
