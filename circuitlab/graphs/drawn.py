"""Circuits as plain records, for drawing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.parts import Kind


def drawn_parts(circuit: CircuitData) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kept nodes and edges as plain records, for drawing."""
    return drawn_nodes(circuit.nodes, circuit.node_effects), [
        {
            "source": edge.source.name,
            "target": edge.reader.node.name,
            "slot": edge.reader.slot.value if edge.reader.slot else None,
            "score": score,
        }
        for edge, score in circuit.edges()
    ]


def drawn_nodes(nodes: Iterable[Any], effects: Mapping[str, float]) -> list[dict[str, Any]]:
    """Nodes as plain records, for drawing; the logits always among them."""
    found = [
        {
            "name": node.name,
            "kind": node.kind.value,
            "layer": node.layer,
            "head": node.head,
            "sweep_effect": effects.get(node.name),
        }
        for node in nodes
    ]
    if Kind.LOGITS.value not in {n["name"] for n in found}:
        found.append({"name": "logits", "kind": "logits", "layer": None, "head": None, "sweep_effect": None})
    return found
