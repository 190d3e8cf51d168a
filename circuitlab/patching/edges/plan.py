"""Which edges are patched, at which tokens and how they are judged: checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from circuitlab.arguments import check_each_once
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge, Kind, Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import resolve_direction
from circuitlab.patching.runs.columns import Columns, columns_of

# Edge names or edges, or a mask [writer, reader]; None: every edge of the graph.
Edges = str | Edge | Iterable[str | Edge] | Bool[np.ndarray, "writer reader"] | Bool[Tensor, "writer reader"] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgePlan:
    """A checked request.

    Attributes:
        edges: What is patched, each alone.
        columns: Which tokens of an edge's message are patched together.
        direction: "noise" corrupts an edge of the clean run, "denoise" cleans one of the corrupted run.
    """

    edges: tuple[Edge, ...]
    columns: Columns
    direction: str


def plan_edges(
    experiment: Experiment,
    edges: Edges = None,
    *,
    axis: str = "all",
    positions: Iterable[int] | None = None,
    direction: str | None = None,
) -> EdgePlan:
    """Check every argument of `patch_edges`; see there.

    Returns:
        The plan.

    Raises:
        UnknownNameError: There is no such edge, axis or direction.
        ConfigError: No edge, an edge or a position twice, or an ablation that goes with direction "noise" only.
    """
    direction = resolve_direction(direction, experiment.replacement.kind, experiment.pairs)
    chosen = resolve_edges(Layout.of(experiment.model.spec), edges)
    columns = columns_of(experiment.pairs, experiment.batches, axis)
    if positions is not None:
        columns = columns.at(positions)
    if direction == "denoise" and experiment.replacement.kind != "corrupt":
        raise ConfigError(
            f"direction 'denoise' puts clean messages into the corrupted run, so ablation "
            f"{experiment.replacement.kind!r} has no place in it. Take direction='noise', or leave ablation out."
        )
    return EdgePlan(edges=chosen, columns=columns, direction=direction)


def resolve_edges(layout: Layout, edges: Edges) -> tuple[Edge, ...]:
    """The edges that are meant, in the order given; a mask's in the order of `Layout.edges`.

    Returns:
        The edges.

    Raises:
        UnknownNameError: One is no edge of the model.
        ConfigError: There are none, one is named twice, or a mask has the wrong shape.
    """
    if edges is None:
        return tuple(layout.edges())
    if isinstance(edges, Tensor):
        edges = edges.cpu().numpy()
    if isinstance(edges, np.ndarray):
        return _masked(layout, edges)
    if isinstance(edges, str | Edge):
        edges = [edges]
    found = [_resolve(layout, edge) for edge in edges]
    check_each_once("edge", [edge.name for edge in found], "such as 'm0->logits', or leave it out for all")
    return tuple(found)


def reader_layer(layout: Layout, edge: Edge) -> int:
    """The layer of an edge's reader; the number of layers for the logits.

    Returns:
        The number.
    """
    node = edge.reader.node
    return layout.spec.n_layers if node.kind is Kind.LOGITS else int(node.layer or 0)


def _masked(layout: Layout, mask: np.ndarray) -> tuple[Edge, ...]:
    real = real_edges(layout)
    if mask.shape != real.shape or mask.dtype != bool:
        raise ConfigError(
            f"a mask of edges is boolean and has the shape {real.shape} (writers, readers) in this model; got "
            f"{mask.dtype} {mask.shape}."
        )
    rows, columns = edge_places(layout).T
    found = tuple(edge for edge, kept in zip(layout.edges(), mask[rows, columns], strict=True) if kept)
    if not found:
        raise ConfigError("the mask holds no edge of the model; leave edges out for all of them.")
    return found


def _resolve(layout: Layout, given: str | Edge) -> Edge:
    name = given.name if isinstance(given, Edge) else str(given)
    try:
        edge = given if isinstance(given, Edge) else Edge.parse(name)
    except UnknownNameError as error:
        raise _unknown(layout, name, str(error)) from error
    spec = layout.spec
    if edge.source not in layout.writers or edge.reader not in layout.readers:
        mlps = "an MLP" if spec.has_mlp else "no MLP"
        raise _unknown(layout, name, f"It has {spec.n_layers} layers of {spec.n_heads} heads and {mlps}.")
    if layout.writer_index(edge.source) >= layout.visible[layout.reader_index(edge.reader)]:
        raise _unknown(layout, name, f"{edge.source.name} writes after {edge.reader.name} has read.")
    return edge


def _unknown(layout: Layout, name: str, why: str) -> UnknownNameError:
    near = get_close_matches(name, [edge.name for edge in layout.edges()], n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown edge {name!r} in model {layout.spec.name!r}.{guess} {why}")
