"""What a benchmark found: one number with its unit, its target and how it came about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks.clock import Timing

HEADER = ("What", "Model and prompts", "Measured", "Target", "Reached", "From")


class Unit(Enum):
    """How a number is written."""

    FASTER = "{:.3g} times faster"
    TIMES = "{:.2f} times"
    PERCENT = "{:.0%}"
    GIGABYTES = "{:.2f} GB"
    SHARE = "{:.1e}"
    CHEAPER = "{:.3g} times cheaper"
    MILLISECONDS = "{:.0f} ms"
    EDGES = "{:.0f} edges"
    SECONDS = "{:.3g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of a table.

    Attributes:
        what: What was measured.
        on: The model, and how many prompts of what length.
        value: The number, from the quickest rounds.
        unit: How it is written.
        in_the_middle: The same from the median rounds, where it is a time.
        target: What was aimed for, if anything.
        at_least: Whether more is better.
        detail: The times that the number came from.
    """

    what: str
    on: str
    value: float
    unit: Unit
    in_the_middle: float | None = None
    target: float | None = None
    at_least: bool = True
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def cells(self, judged: bool = True) -> tuple[str, ...]:
        """The row as text, in the order of `HEADER`; times that are not to be judged meet no target and miss none."""
        measured = self.unit.value.format(self.value)
        if self.in_the_middle is not None:
            measured += f" (median {self.unit.value.format(self.in_the_middle).partition(' ')[0]})"
        if self.target is None:
            return self.what, self.on, measured, "", "", self.detail
        bound = f"{'at least' if self.at_least else 'at most'} {self.unit.value.format(self.target)}"
        verdict = "yes" if self.reached else "**no**"
        if not judged and self.unit not in (Unit.SHARE, Unit.EDGES):
            verdict = "not judged"
        return self.what, self.on, measured, bound, verdict, self.detail


def faster(what: str, on: str, ours: Timing, other: Timing, *, target: float | None, detail: str) -> Finding:
    """How many times less time one way takes than the other."""
    return Finding(
        what=what,
        on=on,
        value=other.best / ours.best,
        in_the_middle=other.median / ours.median,
        unit=Unit.FASTER,
        target=target,
        detail=detail,
    )


def costs(what: str, on: str, ours: Timing, other: Timing, *, target: float | None, detail: str) -> Finding:
    """The time of one way as a multiple of the other's; less is better."""
    return Finding(
        what=what,
        on=on,
        value=ours.best / other.best,
        in_the_middle=ours.median / other.median,
        unit=Unit.TIMES,
        target=target,
        at_least=False,
        detail=detail,
    )


def differs(what: str, on: str, value: float, *, target: float | None = None, detail: str) -> Finding:
    """The largest difference between two ways, as a share of the clean-corrupted gap; less is better."""
    return Finding(what=what, on=on, value=value, unit=Unit.SHARE, target=target, at_least=False, detail=detail)


def seconds(timing: Timing) -> str:
    """The quickest round in readable units."""
    best = timing.best
    return f"{best:.3g} s" if best >= 1 else f"{1000 * best:.3g} ms"
