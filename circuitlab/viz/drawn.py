"""Nodes and edges as a drawing needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from circuitlab.parts import Edge, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnNode:
    """A node as a drawing needs it.

    Attributes:
        name: `input`, `a3.h2`, `m0` or `logits`.
        kind: What it is.
        layer: Its layer; None for input and logits.
        head: Its head; None for all but heads.
        sweep_effect: What patching this node alone recovers, 0 = corrupted, 1 = clean; None if it was not measured.
    """

    name: str
    kind: Literal["input", "head", "mlp", "logits"]
    layer: int | None = None
    head: int | None = None
    sweep_effect: float | None = None

    @classmethod
    def of(cls, name: str, sweep_effect: float | None = None) -> DrawnNode:
        """The node of this name.

        Raises:
            UnknownNameError: The name is not spelt as a node.
        """
        node = Node.parse(name)
        return cls(name=name, kind=node.kind.value, layer=node.layer, head=node.head, sweep_effect=sweep_effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnEdge:
    """An edge as a drawing needs it.

    Attributes:
        source: Name of the node that writes.
        target: Name of the node that reads.
        slot: Which input of a head it enters; None for MLPs and the logits.
        score: Positive: the edge helps. NaN: it was not scored.
    """

    source: str
    target: str
    slot: Literal["q", "k", "v"] | None = None
    score: float = math.nan

    @classmethod
    def of(cls, name: str, score: float = math.nan) -> DrawnEdge:
        """The edge of this name, `m0->a3.h2<q>`.

        Raises:
            UnknownNameError: The name is not spelt as an edge.
        """
        edge = Edge.parse(name)
        slot = edge.reader.slot.value if edge.reader.slot else None
        return cls(source=edge.source.name, target=edge.reader.node.name, slot=slot, score=score)

    @property
    def name(self) -> str:
        """The full name, `m0->a3.h2<q>`."""
        return f"{self.source}->{self.target}" + (f"<{self.slot}>" if self.slot else "")

    @property
    def strength(self) -> float:
        """The score without its sign; 0 where it is not a number."""
        return abs(self.score) if math.isfinite(self.score) else 0.0
