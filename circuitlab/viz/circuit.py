"""Drawings of circuits: input at the bottom, logits at the top, a row for each layer's heads and one for its MLP."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve

from circuitlab.errors import GraphError
from circuitlab.parts import Kind
from circuitlab.summary import plural
from circuitlab.viz.layered import Layered, lay_out, path_of
from circuitlab.viz.looks import DrawnEdge, DrawnNode, Looks, by_score, draw_legend, meaning_of_signs
from circuitlab.viz.save import canvas
from circuitlab.viz.style import BAND, INK, MUTED, PAPER, Colour, diverging, text_on
from circuitlab.viz.text import drawable

# More edges than this are not legible; the strongest are drawn, as stated in the figure.
MOST_EDGES = 800
# Inches: width, height, and free space on either side.
_SIZES = {"input": (0.66, 0.25), "head": (0.54, 0.33), "mlp": (0.5, 0.25), "logits": (0.66, 0.25)}
_ROOM = 0.06
_PORTS = {"q": -0.17, "k": 0.0, "v": 0.17}
_GAP = (0.42, 1.15)
_CASING = 1.1
_LEGEND_GAP = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """Everything with its place, before anything is drawn. Inches from the lower left corner of the graph."""

    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    row_of: dict[str, int]
    layout: Layered
    y: tuple[float, ...]


def draw_circuit(
    nodes: Sequence[DrawnNode],
    edges: Sequence[DrawnEdge],
    *,
    title: str = "",
    looks: Looks | None = None,
    sign: str | None = None,
) -> Figure:
    """Draw a circuit.

    Edges run upwards; blue ones help, red ones hurt, thick dark ones are strong. Edges leaving the same node are
    bundled and branch off below their readers; those into a head end at its q, k or v. Nodes are filled by their
    `sweep_effect` where one is given. Beyond 800 edges only the strongest 800 are drawn, as stated in the figure.

    Args:
        nodes: Every node that an edge touches, and any others to be shown.
        edges: The edges of the circuit.
        title: Over the figure.
        looks: Meaning of the lines; by default colour and width show the sign and size of the score.
        sign: What the sign of the scores means, a name of `circuitlab.names.SIGNS`; by default that positive ones help.

    Returns:
        A figure of its own size; the identifier of each edge in an SVG of it is the edge's name.

    Raises:
        GraphError: No node, a name that occurs twice, an edge that touches a node that is not given, or one that does
            not run forward.
    """
    _check(nodes, edges)
    scene = _scene(nodes, edges)
    looks = replace(by_score(scene.edges) if looks is None else looks, signs=meaning_of_signs(sign))
    width, top = scene.layout.width, scene.y[-1]
    with canvas(width, top + 0.2, "circuit") as (figure, axes):
        axes.set(xlim=(0, width), ylim=(-0.2, top))
        axes.set_axis_off()
        reach = _node_reach(scene.nodes)
        _draw_bands(axes, scene)
        _draw_edges(axes, scene, looks)
        for node in scene.nodes:
            _draw_node(axes, scene, node, reach)
        _draw_title(axes, scene, title, len(edges))
        draw_legend(
            axes, (width + _LEGEND_GAP, top + _SIZES["logits"][1] / 2), edges=scene.edges, node_reach=reach, looks=looks
        )
    return figure


def _check(nodes: Sequence[DrawnNode], edges: Sequence[DrawnEdge]) -> None:
    rank = {node.name: _row_key(node) for node in nodes}
    if not nodes:
        raise GraphError("a circuit without nodes cannot be drawn. Give at least input and logits.")
    if len(rank) < len(nodes) or len({edge.name for edge in edges}) < len(edges):
        raise GraphError("a node or edge occurs twice in the circuit to draw. Give each once.")
    for edge in edges:
        if missing := [name for name in (edge.source, edge.target) if name not in rank]:
            raise GraphError(
                f"edge {edge.name!r} touches {missing[0]!r}, which is not among the nodes to draw. Add it."
            )
        if rank[edge.source] >= rank[edge.target]:
            raise GraphError(
                f"edge {edge.name!r} does not run forward: {edge.source!r} writes after {edge.target!r} reads."
            )


def _row_key(node: DrawnNode) -> tuple[int, int]:
    """Rows from bottom to top."""
    if node.kind == Kind.INPUT.value:
        return (-1, 0)
    if node.kind == Kind.LOGITS.value:
        return (1 << 30, 0)
    return (node.layer or 0, int(node.kind == Kind.MLP.value))


def _scene(nodes: Sequence[DrawnNode], edges: Sequence[DrawnEdge]) -> _Scene:
    shown = sorted(edges, key=lambda edge: (-edge.strength, edge.name))[:MOST_EDGES]
    touched = {name for edge in shown for name in (edge.source, edge.target)}
    kept = [node for node in nodes if len(shown) == len(edges) or node.name in touched]
    ordered = sorted(kept, key=lambda node: (*_row_key(node), node.head or 0))
    keys = sorted({_row_key(node) for node in ordered})
    row_of = {node.name: keys.index(_row_key(node)) for node in ordered}
    rows = [[node.name for node in ordered if row_of[node.name] == i] for i in range(len(keys))]
    shown.sort(key=lambda edge: (row_of[edge.source], edge.source, row_of[edge.target], edge.name))
    half = {node.name: _SIZES[node.kind][0] / 2 + _ROOM for node in ordered}
    layout = lay_out(rows, [(e.source, e.target, _PORTS.get(e.slot or "", 0.0)) for e in shown], half)
    y = [0.0]
    for spread in layout.spread:
        y.append(y[-1] + 0.3 + float(np.clip(0.35 + 0.16 * spread, *_GAP)))
    return _Scene(
        nodes=tuple(ordered),
        edges=tuple(shown),
        row_of=row_of,
        layout=layout,
        y=tuple(y),
    )


def _draw_bands(axes: Axes, scene: _Scene) -> None:
    """A grey band under every other layer, and the layer's number on its left."""
    layers = sorted({node.layer for node in scene.nodes if node.layer is not None})
    for i, layer in enumerate(layers):
        rows = [scene.y[scene.row_of[node.name]] for node in scene.nodes if node.layer == layer]
        low, high = min(rows) - 0.27, max(rows) + 0.25
        if i % 2 == 0:
            size = (scene.layout.width + 0.75, high - low)
            axes.add_patch(Rectangle((-0.65, low), *size, facecolor=BAND, linewidth=0, zorder=0, clip_on=False))
        axes.text(-0.58, (low + high) / 2, f"layer {layer}", fontsize=7, color=MUTED, va="center", ha="left")


def _draw_edges(axes: Axes, scene: _Scene, looks: Looks) -> None:
    """Source by source, weak ones first; lines of each source have a white outline, to show crossings."""
    by_source = defaultdict[str, list[DrawnEdge]](list)
    look_of = {edge.name: looks.of(edge) for edge in scene.edges}
    for edge in sorted(scene.edges, key=lambda edge: (look_of[edge.name].order, edge.strength, edge.name)):
        by_source[edge.source].append(edge)
    order = sorted(by_source, key=lambda name: (by_source[name][-1].strength, name))
    for depth, source in enumerate(order):
        for edge in by_source[source]:
            curve = _curve(scene, edge)
            look = look_of[edge.name]
            casing = PathPatch(curve, fill=False, edgecolor=PAPER, linewidth=look.width + _CASING, capstyle="butt")
            line = PathPatch(
                curve, fill=False, edgecolor=look.colour, linewidth=look.width, linestyle=look.dashes, capstyle="butt",
                gid=edge.name,
            )  # fmt: skip
            for patch, zorder in ((casing, 1 + depth), (line, 1.5 + depth)):
                # Curves stay between the items they pass; measuring 800 of them for the figure's size took 4 s.
                patch.set(zorder=zorder, clip_on=False, in_layout=False)
                axes.add_artist(patch)


def _curve(scene: _Scene, edge: DrawnEdge) -> Curve:
    """From the top of the source through its trunk to the port of the reader, vertical wherever it passes a row."""
    path = path_of(edge.source, edge.target, scene.row_of)
    x = scene.layout.x
    half = _SIZES["head"][1] / 2
    points = [(x[path[0]], scene.y[path[0][1]])]
    codes = [Curve.MOVETO]
    for low, high in pairwise(path):
        last = high is path[-1]
        end_x = x[high] + (_PORTS.get(edge.slot or "", 0.0) if last else 0.0)
        start_y, end_y = scene.y[low[1]] + half, scene.y[high[1]] - half
        middle = (start_y + end_y) / 2
        points += [(x[low], start_y), (x[low], middle), (end_x, middle), (end_x, end_y)]
        codes += [Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    # Shorter boxes than a head's: go on to the edge of the box, which is drawn on top.
    points.append((points[-1][0], scene.y[path[-1][1]] - 0.1))
    return Curve(points, [*codes, Curve.LINETO])


def _node_reach(nodes: Sequence[DrawnNode]) -> float | None:
    """The largest effect of a node without its sign, at least 0.1; None where no node has one."""
    effects = [abs(node.sweep_effect) for node in nodes if node.sweep_effect is not None]
    effects = [effect for effect in effects if math.isfinite(effect)]
    return max([0.1, *effects]) if effects else None


def _draw_node(axes: Axes, scene: _Scene, node: DrawnNode, reach: float | None) -> None:
    width, height = _SIZES[node.kind]
    x, y = scene.layout.x[(node.name, scene.row_of[node.name])], scene.y[scene.row_of[node.name]]
    ends = node.kind in ("input", "logits")
    fill: Colour = INK if ends else PAPER
    if reach is not None and node.sweep_effect is not None and math.isfinite(node.sweep_effect):
        fill = diverging()(0.5 + 0.5 * node.sweep_effect / reach)
    corner = {"head": 0.09, "mlp": 0.0}.get(node.kind, 0.12)
    box = FancyBboxPatch(
        (x - width / 2 + corner, y - height / 2 + corner), width - 2 * corner, height - 2 * corner,
        boxstyle=f"round,pad={corner}" if corner else "square,pad=0", facecolor=fill, edgecolor=INK, linewidth=0.8,
        zorder=10_000, clip_on=False, gid=node.name,
    )  # fmt: skip
    axes.add_patch(box)
    ink = text_on(fill)
    slots = {edge.slot for edge in scene.edges if edge.target == node.name and edge.slot}
    lift = 0.045 if slots else 0.0
    axes.text(x, y + lift, drawable(node.name), fontsize=7.5, color=ink, ha="center", va="center", zorder=10_001)
    for slot in sorted(slots):
        axes.text(
            x + _PORTS[slot], y - 0.105, slot, fontsize=5.5, color=ink, ha="center", va="center", zorder=10_001,
            fontweight="bold",
        )  # fmt: skip


def _draw_title(axes: Axes, scene: _Scene, title: str, n_edges: int) -> None:
    top = scene.y[-1] + 0.32
    shown = len(scene.edges)
    count = plural(n_edges, "edge") if shown == n_edges else f"the {shown:,} strongest of {n_edges:,} edges"
    axes.text(-0.65, top, f"{len(scene.nodes)} nodes, {count}", fontsize=7, color=MUTED, va="bottom")
    if title:
        axes.text(-0.65, top + 0.16, drawable(title), fontsize=9, fontweight="bold", va="bottom")
