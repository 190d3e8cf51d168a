"""Circuit drawings: their nodes and edges, line styles by score, circuit or selection frequency, and the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from circuitlab.parts import Edge, Node
from circuitlab.viz.style import INK, MUTED, NEGATIVE, POSITIVE, UNKNOWN, Colour, diverging, mixed, sign_colour
from circuitlab.viz.text import drawable, significant


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnNode:
    """A node as a drawing needs it.

    Attributes:
        name: `input`, `a3.h2`, `m0` or `logits`.
        kind: What it is.
        layer: Its layer; None for input and logits.
        head: Its head; None for all but heads.
        sweep_effect: Share of the gap that patching this node alone recovers, or, without corrupted prompts, that
            ablating it loses; None if it was not measured.
    """

    name: str
    kind: Literal["input", "head", "mlp", "logits"]
    layer: int | None = None
    head: int | None = None
    sweep_effect: float | None = None

    @classmethod
    def of(cls, name: str, sweep_effect: float | None = None) -> DrawnNode:
        """The node of this name.

        Returns:
            The node.

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

        Returns:
            The edge.

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
        signs: What a positive and a negative score mean.
    """

    of: Callable[[DrawnEdge], Look]
    heading: str
    key: Sequence[tuple[Look, str]]
    shows_score: bool = False
    signs: tuple[str, str] = ("helps (score > 0)", "hurts (score < 0)")


def meaning_of_signs(sign: str | None) -> tuple[str, str]:
    """What a positive and a negative score mean, in the key of a drawing.

    Args:
        sign: A name of `circuitlab.names.SIGNS`; None, as in circuits of files, is the convention of edge scores.

    Returns:
        Both texts.
    """
    return ("helps (score > 0)", "hurts (score < 0)") if sign in (None, "effect") else ("score > 0", "score < 0")


def line_width(score: float, strongest: float) -> float:
    """Points of the line of an edge; the root keeps weak edges visible beside one that is much stronger.

    Returns:
        The width in points.
    """
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


_LINE = 0.17
_SAMPLE = 0.3
_BAR = (1.15, 0.1)


def draw_legend(
    axes: Axes, corner: tuple[float, float], *, edges: Sequence[DrawnEdge], node_reach: float | None, looks: Looks
) -> None:
    """Draw the key downwards from its upper left corner, with only the entries that the drawing needs.

    Args:
        axes: Its coordinates are inches.
        corner: Left and top in these coordinates.
        edges: The edges drawn.
        node_reach: Largest effect of a node without its sign, if they are filled by their effects.
        looks: Meaning of the lines.
    """
    x, y = corner
    y = _heading(axes, x, y, "edges (upwards)")
    strongest = max((edge.strength for edge in edges), default=0.0)
    for colour, text, wanted in (
        (POSITIVE, looks.signs[0], any(edge.score >= 0 for edge in edges)),
        (NEGATIVE, looks.signs[1], any(edge.score < 0 for edge in edges)),
        (UNKNOWN, "not scored", looks.shows_score and any(edge.score != edge.score for edge in edges)),
    ):
        if wanted:
            y = _line(axes, x, y, text, Look(colour, line_width(strongest / 2, strongest)))
    if len(edges) > 1:
        axes.text(x, y, "edges leaving the same node are bundled", fontsize=6.5, color=MUTED, va="center")
        y -= _LINE
    if looks.key:
        y = _heading(axes, x, y - 0.06, looks.heading)
    for look, text in looks.key:
        y = _line(axes, x, y, drawable(text), look)
    if any(edge.slot for edge in edges):
        y = _heading(axes, x, y - 0.06, "inputs of a head")
        for slot, word in (("q", "query"), ("k", "key"), ("v", "value")):
            axes.text(x + _SAMPLE / 2, y, slot, fontsize=6, fontweight="bold", color=INK, va="center", ha="center")
            axes.text(x + _SAMPLE + 0.08, y, word, fontsize=7, color=INK, va="center")
            y -= _LINE
    if node_reach is not None:
        y = _heading(axes, x, y - 0.06, "effect of patching the node alone")
        _bar(axes, x, y, node_reach)


def _heading(axes: Axes, x: float, y: float, text: str) -> float:
    axes.text(x, y, text, fontsize=7, color=MUTED, va="center")
    return y - _LINE


def _line(axes: Axes, x: float, y: float, text: str, look: Look) -> float:
    axes.plot(
        [x, x + _SAMPLE], [y, y], color=look.colour, linewidth=look.width, linestyle=look.dashes, clip_on=False,
        solid_capstyle="butt", dash_capstyle="butt",
    )  # fmt: skip
    axes.text(x + _SAMPLE + 0.08, y, text, fontsize=7, color=INK, va="center")
    return y - _LINE


def _bar(axes: Axes, x: float, y: float, reach: float) -> None:
    """A colour bar lying flat, with its ends and its middle."""
    width, height = _BAR
    edges = np.linspace(x, x + width, 97)
    bottom = y - height / 2
    axes.pcolormesh(
        edges, [bottom, bottom + height], np.linspace(-reach, reach, 96)[None, :], cmap=diverging(),
        edgecolors="face", linewidth=0.6, clip_on=False,
    )  # fmt: skip
    for share, value, align in ((0.0, -reach, "left"), (0.5, 0.0, "center"), (1.0, reach, "right")):
        axes.text(x + share * width, bottom - 0.05, significant(value), fontsize=6.5, color=INK, va="top", ha=align)
    axes.text(x, bottom - 0.2, "0 = no effect, 1 = whole gap", fontsize=6.5, color=MUTED, va="top")
