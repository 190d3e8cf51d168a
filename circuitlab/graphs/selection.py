"""How a circuit was selected out of scored edges: what was asked for, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """One selection. Pruning leaves out what does not connect, so a circuit may be smaller than what was taken.

    Attributes:
        rule: "target" (the smallest circuit that reaches a faithfulness), "n_edges" (so many top edges), "threshold"
            (edges that score at least so much) or "chosen" (the scoring method's own circuit).
        asked: The faithfulness, the number of edges, or the threshold.
        signed: Edges are ranked by score; else by its absolute value.
        greedy: The circuit grew from the logits; else the ranking is of all edges at once.
        nominal: Edges that were taken.
        achieved: Edges that are left after pruning.
        n_nodes: Nodes that are left, input and logits included.
        faithfulness: Of the circuit on the pairs it was selected on, where that was measured.
    """

    rule: str
    asked: float
    signed: bool
    greedy: bool
    nominal: int
    achieved: int
    n_nodes: int
    faithfulness: float | None = None

    def to_record(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        return asdict(self)
