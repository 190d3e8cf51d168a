"""How a circuit is selected out of scored edges: what is asked for, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from circuitlab.errors import ConfigError

USUAL_TARGET = 0.9
ASKED = ("target", "n_edges", "threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """What is asked of a selection: at most one of a target, a number of edges and a threshold, and how edges rank.

    Attributes:
        target: The smallest circuit with this faithfulness is looked for, above 0 and at most 1. Where nothing is asked
            for, a method's own circuit is taken (`acdc`, `edge-pruning`), or one that reaches 0.9.
        n_edges: So many top edges are taken (before pruning), whatever their faithfulness.
        threshold: The edges that score at least so much are taken, whatever their faithfulness.
        signed: Edges rank by score; else by its absolute value, which keeps edges that hurt along with those that help.
        greedy: The circuit grows from the logits; by default only for scores that are shares of a reader (`ifr`), which
            cannot be compared from one reader to the other.

    Raises:
        ConfigError: Two of the three are given, or one is out of range.
    """

    target: float | None = None
    n_edges: int | None = None
    threshold: float | None = None
    signed: bool = False
    greedy: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in ASKED if getattr(self, name) is not None]
        if len(given) > 1:
            listed = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            raise ConfigError(f"{listed} are {'both' if len(given) == 2 else 'all'} given. Give one.")
        if self.target is not None and not 0 < self.target <= 1:
            raise ConfigError(
                f"target is {self.target}; a faithfulness to reach lies above 0 and at most at 1. 0.9 is usual."
            )
        n = self.n_edges
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ConfigError(f"n_edges is {n!r}; it counts edges and must be a whole number of at least 1.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"threshold is {self.threshold}; it must be a number in the unit of the scores.")

    @property
    def aim(self) -> float | None:
        """The faithfulness to reach; None where size or score decide."""
        return None if self.n_edges is not None or self.threshold is not None else self.target or USUAL_TARGET

    def check_size(self, n_total: int) -> None:
        """Refuse more edges than the graph has.

        Raises:
            ConfigError: It asks for more.
        """
        if self.n_edges is not None and self.n_edges > n_total:
            raise ConfigError(f"n_edges is {self.n_edges}; the graph has {n_total} edges, so 1 to that many.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The rule as keyword arguments of `select`."""
        return asdict(self)

    @classmethod
    def of(cls, rule: SelectionRule | Mapping[str, Any] | None, target: float | None = None) -> SelectionRule:
        """A rule from itself or its record, with a target that is given beside it.

        Raises:
            ConfigError: Both say what to reach.
        """
        said: dict[str, Any] = asdict(rule) if isinstance(rule, SelectionRule) else dict(rule or {})
        if target is not None:
            if said.get("target") not in (None, target):
                raise ConfigError(f"target is {target}, but the selection's is {said['target']}. Give one.")
            said["target"] = target
        return cls(**said)


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
