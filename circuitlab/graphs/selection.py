"""Selection of a circuit from scored edges: the rule and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any

from circuitlab.arguments import checked_fields
from circuitlab.declarations import Setting, options_of
from circuitlab.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

USUAL_TARGET = 0.9
ASKED = ("target", "n_edges", "threshold")


@checked_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """Rule of a selection: at most one of a target, a number of edges and a threshold, and how edges are ranked.

    Attributes:
        target: Select the smallest circuit found with this faithfulness, above 0 and at most 1. If nothing is given
            for, a method's own circuit is taken (`acdc`, `edge-pruning`), or one that reaches 0.9.
        n_edges: So many top edges are taken (before pruning), whatever their faithfulness.
        threshold: The edges that score at least so much are taken, whatever their faithfulness.
        signed: Edges rank by score; else by its absolute value, which keeps edges that hurt along with those that help.
        greedy: The circuit grows from the logits; by default only for scores that are shares of a reader (`ifr`), which
            cannot be compared from one reader to the other.

    Raises:
        ConfigError: Two of the three are given, or one is out of range.

    Example:
        >>> SelectionRule(n_edges=40, signed=True).n_edges
        40
    """

    target: float | None = None
    n_edges: Annotated[
        int | None,
        Setting(what="Select the N top edges instead of a target.", flag="--n-edges", metavar="N", least=1),
    ] = None
    threshold: Annotated[
        float | None, Setting(what="Select edges with at least this score instead of a target.", flag="--threshold")
    ] = None
    signed: Annotated[
        bool, Setting(what="Rank edges by score, or by its absolute value.", flag="--signed/--absolute")
    ] = False
    greedy: Annotated[
        bool | None,
        Setting(what="Grow the circuit from the logits.", flag="--greedy/--no-greedy", shown="for ifr only"),
    ] = None

    def __post_init__(self) -> None:
        given = [name for name in ASKED if getattr(self, name) is not None]
        if len(given) > 1:
            listed = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            raise ConfigError(f"{listed} are {'both' if len(given) == 2 else 'all'} given. Give one.")
        if self.target is not None and not 0 < self.target <= 1:
            raise ConfigError(f"target is {self.target}; it must be above 0 and at most 1. The default is 0.9.")
        for part in options_of(SelectionRule):
            part.read(getattr(self, part.name))

    @property
    def aim(self) -> float | None:
        """The faithfulness to reach; None where size or score decide."""
        return None if self.n_edges is not None or self.threshold is not None else self.target or USUAL_TARGET

    def is_chosen(self, own_circuit: bool) -> bool:
        """Whether the method's own circuit is selected.

        Args:
            own_circuit: Whether the method chooses one.

        Returns:
            Whether it is: where neither a target, a number of edges nor a threshold is given.

        Raises:
            ConfigError: It is, and the rule says how edges are ranked, which has no meaning then.
        """
        if not own_circuit or any(getattr(self, name) is not None for name in ASKED):
            return False
        for name, given in (("signed", self.signed), ("greedy", self.greedy is not None)):
            if given:
                raise ConfigError(
                    f"{name}={getattr(self, name)} says how edges are ranked, but the method chooses its circuit "
                    f"itself. Leave {name} out, or give a target, n_edges or a threshold."
                )
        return True

    def check_size(self, n_total: int) -> None:
        """Refuse more edges than the graph has.

        Raises:
            ConfigError: It asks for more.
        """
        if self.n_edges is not None and self.n_edges > n_total:
            raise ConfigError(f"n_edges is {self.n_edges}; the graph has {n_total} edges, so 1 to that many.")

    @classmethod
    def of(cls, rule: SelectionRule | Mapping[str, Any] | None, target: float | None = None) -> SelectionRule:
        """A rule from itself or its record, with a target that is given separately.

        Returns:
            The rule.

        Raises:
            UnknownNameError: There is no such setting.
            ConfigError: Both have a target.
        """
        given: dict[str, Any] = asdict(rule) if isinstance(rule, SelectionRule) else dict(rule or {})
        if target is not None:
            if given.get("target") not in (None, target):
                raise ConfigError(f"target is {target}, but the selection's is {given['target']}. Give one.")
            given["target"] = target
        for name in given:
            UnknownNameError.check("setting", name, [one.name for one in fields(cls)], owner="selection")
        return cls(**given)


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
        faithfulness: Of the circuit on the pairs it was selected on; None where that was not measured.
        interval: Its 95 % bootstrap interval over these pairs.
        metric: Metric of this faithfulness.
        ablation: What excluded edges carried.
        n_pairs: How many pairs it was measured on.
        n_scored: Edges with a score other than 0: no other edge is taken.
        scores_ablation: Ablation of the scores; None where they do not depend on it, or it is not known.
        sign: What the sign of the scores means (`circuitlab.names.SIGNS`); None where it is not known.
        prompts: Keys of the prompts of these pairs (`circuitlab.data.batching.prompt_keys`); kept in memory only.
    """

    rule: str
    asked: float
    signed: bool
    greedy: bool
    nominal: int
    achieved: int
    n_nodes: int
    faithfulness: float | None = None
    interval: tuple[float, float] | None = None
    metric: str | None = None
    ablation: str | None = None
    n_pairs: int | None = None
    n_scored: int | None = None
    scores_ablation: str | None = None
    sign: str | None = None
    prompts: frozenset[int] = field(default=frozenset(), repr=False, compare=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about parts of the rule that were not met, and about scores under another ablation."""
        found = []
        if self.rule == "n_edges" and self.nominal < self.asked:
            found.append(
                f"{self.asked:,} edges were requested and {self.nominal:,} selected: no other selectable edge has a "
                "score other than 0."
            )
        reached, slack = self.faithfulness, 1e-4  # the whole graph of a float32 model may differ from 1 by 1e-5
        if self.rule == "target" and reached is not None and not abs(reached - 1) <= 1 - self.asked + slack:
            found.append(
                f"The target {self.asked:g} is not reached: all {self.nominal:,} edges with a score other than 0 are "
                f"selected, and have faithfulness {reached:.3f} on the pairs the circuit was selected on."
            )
        if self.rule == "chosen" and reached is not None and not abs(reached - 1) <= 1 - USUAL_TARGET + slack:
            found.append(
                f"The method chose this circuit itself, without a target: faithfulness {reached:.3f} on the pairs the "
                f"circuit was selected on is not within {1 - USUAL_TARGET:.1g} of 1. Give a target ({USUAL_TARGET}) to "
                "select by faithfulness instead."
            )
        if self.scores_ablation and self.ablation and self.scores_ablation != self.ablation:
            found.append(
                f"The edges were scored under ablation {self.scores_ablation} and selected under ablation "
                f"{self.ablation}. Use one ablation for both."
            )
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """A table of one row, with the columns of `to_record`.

        Returns:
            The table.
        """
        import pandas as pd

        return pd.DataFrame([self.to_record()])

    def to_record(self) -> dict[str, Any]:
        """The record in `manifest.json` and `circuit.json`.

        Returns:
            The content of a JSON object.
        """
        record = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "prompts"}
        interval, reached = record.pop("interval"), record["faithfulness"]
        if reached is not None and not math.isfinite(reached):
            record["faithfulness"] = None
        ends = None if interval is None or not all(map(math.isfinite, interval)) else list(interval)
        return {**record, "faithfulness_ci": ends}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Selection:
        """A selection from its record; what is newer than the record is None.

        Returns:
            The selection.

        Raises:
            KeyError, TypeError, ValueError: Something is missing, unknown, or of another kind.
        """
        from circuitlab.outputs.records import from_plain  # brings numpy, which help does without

        given = dict(record)
        return from_plain(cls, given | {"interval": given.pop("faithfulness_ci", None)})
