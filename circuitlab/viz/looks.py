"""Line styles of circuit drawings: by score, by the circuit that an edge is of, by selection frequency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from circuitlab.viz.drawn import DrawnEdge
from circuitlab.viz.style import INK, MUTED, UNKNOWN, Colour, mixed, sign_colour
from circuitlab.viz.text import significant

# Neither is a colour of sign, and both differ in lightness from each other for grey print; the second is dashed too.
FIRST, SECOND = "#7b3294", "#1b8a4b"
SOLID, DASHED, DOTTED = "solid", (0, (4.0, 1.6)), (0, (1.1, 1.3))
Dashes = str | tuple[int, tuple[float, float]]
_WIDTHS = (0.45, 3.6)  # points of the weakest and the strongest edge
# Least selection frequency, its dashes and its strength of colour.
OFTEN = ((0.8, SOLID, 1.0), (0.5, DASHED, 0.85), (0.0, DOTTED, 0.7))


@dataclass(frozen=True, slots=True)
class Look:
    """How one line is drawn: colour, width in points, dashes; of two lines that of the higher order is on top."""

    colour: Colour
    width: float
    dashes: Dashes = SOLID
    order: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Line style of every edge of a drawing, and its legend.

    Attributes:
        of: Edge -> look.
        heading: Of the key.
        key: Samples and their words, from top to bottom.
        shows_score: Whether lines show the score, so that edges without one are listed.
    """

    of: Callable[[DrawnEdge], Look]
    heading: str
    key: Sequence[tuple[Look, str]]
    shows_score: bool = False


def line_width(score: float, strongest: float) -> float:
    """Points of the line of an edge; the root keeps weak edges visible beside one that is much stronger."""
    share = abs(score) / strongest if strongest > 0 and math.isfinite(score) else 0.0
    return _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * math.sqrt(share) ** 1.5


def by_score(edges: Sequence[DrawnEdge]) -> Looks:
    """Blue helps, red hurts; strong edges are thick and dark.

    Args:
        edges: The edges that are drawn.

    Returns:
        Colours and line styles of edges, and the legend.
    """
    strongest = max((edge.strength for edge in edges), default=0.0)

    def look(edge: DrawnEdge) -> Look:
        share = edge.strength / strongest if strongest > 0 else 0.0
        return Look(mixed(sign_colour(edge.score), 0.4 + 0.6 * math.sqrt(share)), line_width(edge.score, strongest))

    samples = (1.0, 0.25, 0.05) if len(edges) > 1 else (1.0,)
    scores = [strongest * share for share in samples if strongest > 0]
    key = [(Look(MUTED, line_width(score, strongest)), significant(score)) for score in scores]
    return Looks(of=look, heading="|score|", key=key, shows_score=True)


def by_owner(owners: Mapping[str, str], names: tuple[str, str]) -> Looks:
    """Edges of both circuits dark, of one alone in its colour.

    Args:
        owners: Name of the edge -> "both", "first" or "second".
        names: What the two circuits are called.

    Returns:
        Colours and line styles of edges, and the legend.
    """
    looks = {"both": Look(INK, 1.5, order=1.0), "first": Look(FIRST, 1.5), "second": Look(SECOND, 1.5, DASHED)}
    counts = {owner: list(owners.values()).count(owner) for owner in looks}
    words = {"both": "both", "first": f"only {names[0]}", "second": f"only {names[1]}"}
    key = [(look, f"{words[owner]} ({counts[owner]:,})") for owner, look in looks.items()]
    return Looks(of=lambda edge: looks[owners[edge.name]], heading="edges of", key=key)


def by_frequency(frequency: Mapping[str, float], outside: frozenset[str], repeated: str = "resamples") -> Looks:
    """Lines whole, dashed or dotted by how often an edge was selected; blue and red by sign, grey outside the circuit.

    Args:
        frequency: Name of the edge -> share of repetitions that selected it, 0 to 1.
        outside: Names of edges that the circuit itself does not keep.
        repeated: What the repetitions are.

    Returns:
        Colours and line styles of edges, and the legend.
    """

    def look(edge: DrawnEdge) -> Look:
        share = frequency[edge.name]
        dashes, strength = next((d, s) for low, d, s in OFTEN if share >= low)
        colour = UNKNOWN if edge.name in outside else sign_colour(edge.score)
        return Look(mixed(colour, strength), 0.6 + 1.6 * share, dashes, order=share)

    samples = ((1.0, "in 80 % or more"), (0.65, "in 50 to 80 %"), (0.25, "in fewer"))
    key = [
        (Look(INK, 0.6 + 1.6 * share, next(d for low, d, _ in OFTEN if share >= low)), word) for share, word in samples
    ]
    if outside:
        key.append((Look(UNKNOWN, 1.4), "not in the circuit"))
    return Looks(of=look, heading=f"selected in {repeated}", key=key)
