"""Which edges are patched, at which tokens and how they are judged: checked before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.graphs.prune import real_edges
from circuitlab.graphs.ranking import edge_places
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.models.protocol import Model
from circuitlab.parts import Edge, Kind, Layout
from circuitlab.patching.runs.baseline import check_direction
from circuitlab.patching.runs.columns import Columns, columns_of
from circuitlab.patching.runs.packing import bytes_per_row, default_budget, fitting, recorded_streams, rows_per_pack

# Edge names or edges, or a mask [writer, reader]; None: every edge of the graph.
Edges = str | Edge | Iterable[str | Edge] | Bool[np.ndarray, "writer reader"] | Bool[Tensor, "writer reader"] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgePlan:
    """A checked request.

    Attributes:
        model: The model.
        edges: What is patched, each alone.
        columns: Which tokens of an edge's message are patched together.
        batches: The prompts, by length, in parts that fit into memory.
        metric: What is measured.
        direction: "noise" corrupts an edge of the clean run, "denoise" cleans one of the corrupted run.
        budget: Bytes that a packed run may take; None for a share of what is free.
    """

    model: Model
    edges: tuple[Edge, ...]
    columns: Columns
    batches: tuple[PairBatch, ...]
    metric: Metric
    direction: str
    budget: int | None

    @property
    def n_examples(self) -> int:
        """In all batches."""
        return sum(map(len, self.batches))


def plan_edges(
    model: Model,
    pairs: PairSet | PairBatch,
    edges: Edges,
    *,
    metric: MetricLike | None,
    axis: str,
    positions: Iterable[int] | None,
    direction: str,
    budget: int | None,
) -> EdgePlan:
    """Check every argument of `patch_edges`; see there."""
    check_direction(direction)
    layout, judged_by = Layout.of(model.spec), metric_for(metric, pairs)
    chosen = resolve_edges(layout, edges)
    batches = parts_that_fit(model, pairs, budget, n_writers=len({edge.source for edge in chosen}))
    columns = columns_of(pairs, batches, axis)
    if positions is not None:
        columns = columns.at(positions)
    return EdgePlan(
        model=model,
        edges=chosen,
        columns=columns,
        batches=batches,
        metric=judged_by,
        direction=direction,
        budget=budget,
    )


def resolve_edges(layout: Layout, edges: Edges) -> tuple[Edge, ...]:
    """The edges that are meant, in the order given; a mask's in the order of `Layout.edges`.

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
    if not found:
        raise ConfigError("edges is empty; name at least one, such as 'm0->logits', or leave it out for all.")
    for edge, times in Counter(found).items():
        if times > 1:
            raise ConfigError(f"edge {edge.name!r} is named twice; name each once.")
    return tuple(found)


def parts_that_fit(
    model: Model, pairs: PairSet | PairBatch, budget: int | None, n_writers: int
) -> tuple[PairBatch, ...]:
    """The batches, cut so that what is recorded of a part takes no more than a pack may, or is of one prompt.

    Raises:
        ConfigError: The budget does not hold one prompt.
    """
    parts, alive = list[PairBatch](), recorded_streams(model) + n_writers
    for batch in batches_for(model, pairs):
        rows_per_pack(model, batch.n_tokens, budget)  # refuses a budget that does not hold one prompt
        floor = bytes_per_row(model, batch.n_tokens, alive)
        parts += fitting(model, batch, max(floor, default_budget(model.device) if budget is None else budget), alive)
    return tuple(parts)


def reader_layer(layout: Layout, edge: Edge) -> int:
    """The layer of an edge's reader; the number of layers for the logits."""
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
