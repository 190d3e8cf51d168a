"""The MIB / EAP-IG `.json` format, both ways without loss.

What is read and written is what EAP-IG's `Graph.from_json` and `to_json` read and write: `cfg`, `nodes` (`in_graph`,
and where there are any `score`, `neurons`, `neurons_scores`) and `edges` (`score` and `in_graph`, always both).

Files of older versions of EAP-IG are read too: nodes that are plain booleans, neurons in an object of their own, a
`cfg` without `d_model`, and edges without scores or that are plain booleans. A score that is NaN or null means the
same in `.json` and `.pt`: the part was not scored, and is always kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from circuitlab.errors import FormatError, UnknownNameError
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.node_parts import NodeParts
from circuitlab.graphs.prune import kept_nodes
from circuitlab.graphs.ranking import edge_places
from circuitlab.graphs.selection import Selection
from circuitlab.parts import Edge, Kind, Layout, ModelSpec, Node, Slot

# A matrix of this many entries takes 900 MB with its mask. Llama-3-70B has 80 million; a file that asks for more asks
# for memory, not for a circuit.
MOST_ENTRIES = 100_000_000
# Additional keys, which readers of the format ignore; the first is also the name in GraphML.
EFFECT = "sweep_effect"
SECOND = "second_score"
SELECTION = "selection"
SHOWN = 40  # characters of a faulty value
UNKNOWN = 0  # the width of a model that an older file leaves out


class _Strict(BaseModel):
    # Lax checks would take "yes" for True.
    model_config = ConfigDict(extra="allow", strict=True)


class _Cfg(_Strict):
    n_layers: int = Field(ge=1, le=1_000_000)
    n_heads: int = Field(ge=1, le=1_000_000)
    d_model: int = Field(default=UNKNOWN, ge=1, le=1_000_000_000)
    parallel_attn_mlp: bool = False


class _NodeEntry(_Strict):
    in_graph: bool
    score: float | None = None
    neurons: list[bool] | None = None
    neurons_scores: list[float | None] | None = None
    sweep_effect: float | None = None


class _EdgeEntry(_Strict):
    score: float | None
    in_graph: bool
    second_score: float | None = None


class _File(_Strict):
    cfg: _Cfg
    nodes: dict[str, _NodeEntry]
    edges: dict[str, _EdgeEntry]
    selection: dict[str, Any] | None = None


def to_json(circuit: CircuitData) -> dict[str, Any]:
    """The circuit as the object that EAP-IG's `Graph.from_json` reads, with both fields for every edge.

    Swept effects of nodes, second scores of edges and the selection are stored under additional keys, which
    EAP-IG ignores.

    Returns:
        The content of the file.
    """
    layout, second = circuit.layout, circuit.second_scores
    edges = {}
    for row, column in _as_constructed(layout):
        name = f"{layout.writers[row].name}->{layout.readers[column].name}"
        edges[name] = {"score": float(circuit.scores[row, column]), "in_graph": bool(circuit.mask[row, column])}
        if second is not None and not math.isnan(second[row, column]):
            edges[name][SECOND] = float(second[row, column])
    kept = kept_nodes(circuit.mask, layout)
    if circuit.node_parts.kept is not None:
        kept[:-1] = circuit.node_parts.kept
    return {
        "cfg": cfg_of(circuit.spec),
        "nodes": {
            node.name: {
                "in_graph": bool(kept[i]),
                **(_parts_of(circuit.node_parts, i) if i < len(layout.writers) else {}),
                **effect_of(node, circuit.node_effects),
            }
            for i, node in enumerate(layout.nodes)
        },
        "edges": edges,
        **({} if circuit.selection is None else {SELECTION: circuit.selection.to_record()}),
    }


def cfg_of(spec: ModelSpec) -> dict[str, Any]:
    """The shape of a model as the format has it.

    Returns:
        The value of `cfg`.
    """
    return {
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
        "parallel_attn_mlp": spec.parallel,
        **({} if spec.d_model == UNKNOWN else {"d_model": spec.d_model}),
    }


def effect_of(node: Node, effects: Mapping[str, float]) -> dict[str, float]:
    """A node's swept effect as an attribute; nothing where there is none.

    Returns:
        At most one entry.
    """
    return {EFFECT: float(effects[node.name])} if node.name in effects else {}


def _parts_of(parts: NodeParts, row: int) -> dict[str, Any]:
    found = {"score": parts.scores, "neurons": parts.neurons, "neurons_scores": parts.neuron_scores}
    return {name: matrix[row].tolist() for name, matrix in found.items() if matrix is not None}


def _as_constructed(layout: Layout) -> Iterator[tuple[int, int]]:
    """Every edge in the order in which EAP-IG constructs them: layer by layer, writer by writer, head by head."""

    def order(place: tuple[int, int]) -> tuple[int, int, int, int, int]:
        row, column = place
        node, slot = layout.readers[column].node, layout.readers[column].slot
        if node.kind is Kind.LOGITS:
            return layout.spec.n_layers, 0, row, 0, 0
        mlp_apart = node.kind is Kind.MLP and not layout.spec.parallel
        head = layout.spec.n_heads if node.head is None else node.head
        return node.layer or 0, int(mlp_apart), row, head, list(Slot).index(slot) if slot else 0

    yield from sorted(((int(row), int(column)) for row, column in edge_places(layout)), key=order)


def read_object(content: Mapping[str, Any], path: Path, spec: ModelSpec | None) -> CircuitData:
    """A circuit from the JSON object of a file; see `load_circuit`.

    Returns:
        The circuit.

    Raises:
        FormatError: A key is missing, has a value of the wrong type, or does not fit the graph.
        UnknownNameError: A node or edge does not exist.
    """
    parsed = _parsed(_as_today(content, path), path)
    try:
        nodes = {name: Node.parse(name) for name in parsed.nodes}
        shape = fitting_spec(parsed.cfg.model_dump(), any(n.kind is Kind.MLP for n in nodes.values()), spec, path)
        layout = Layout.of(shape)
        if strange := set(nodes.values()) - set(layout.nodes):
            first = min(node.name for node in strange)
            raise UnknownNameError.of("node", first, (node.name for node in layout.nodes))
        places = {name: layout.edge_index(Edge.parse(name)) for name in parsed.edges}
    except UnknownNameError as error:
        raise FormatError(f"circuit file {str(path)!r}: {error}") from error
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    scores, second = np.zeros(mask.shape), np.full(mask.shape, np.nan)
    for name, entry in parsed.edges.items():
        mask[places[name]] = entry.in_graph
        # NaN is EAP-IG's mark of an edge that was never scored; infinity is invalid.
        scores[places[name]] = math.nan if entry.score is None else entry.score
        check_finite(scores[places[name]], f"edge {name!r}", path)
        second[places[name]] = math.nan if entry.second_score is None else entry.second_score
    check_finite(second, "a second score", path)
    effects = {name: entry.sweep_effect for name, entry in parsed.nodes.items() if entry.sweep_effect is not None}
    return CircuitData(
        spec=shape,
        mask=mask,
        scores=scores,
        node_effects=effects,
        node_parts=_node_parts(parsed, layout, mask, path),
        second_scores=None if np.isnan(second).all() else second,
        selection=selection_of(parsed.selection, path),
    )


def selection_of(record: Any, path: Path) -> Selection | None:
    """The selection that a file holds, if it holds one.

    Returns:
        The selection, or None.

    Raises:
        FormatError: It is none.
    """
    try:
        return None if record is None else Selection.of_record(record)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"circuit file {str(path)!r}: {SELECTION} is no record of a selection: {error}. Leave the key out."
        ) from error


def _node_parts(parsed: _File, layout: Layout, mask: Bool[np.ndarray, "writer reader"], path: Path) -> NodeParts:
    """Node records of the file; as in EAP-IG, nodes without a score have NaN if others have one."""
    entries = {layout.writer_index(Node.parse(n)): entry for n, entry in parsed.nodes.items() if n != Kind.LOGITS.value}
    n_writers, d_model = len(layout.writers), layout.spec.d_model
    derived = kept_nodes(mask, layout)[:-1]
    kept = derived.copy()
    _check_widths(parsed, n_writers, d_model, path)
    found: dict[str, np.ndarray | None] = {
        "scores": np.full(n_writers, np.nan) if _any(entries, "score") else None,
        "neurons": np.zeros((n_writers, d_model), dtype=bool) if _any(entries, "neurons") else None,
        "neuron_scores": np.full((n_writers, d_model), np.nan) if _any(entries, "neurons_scores") else None,
    }
    for row, entry in entries.items():
        kept[row] = entry.in_graph
        for name, given in (
            ("scores", entry.score),
            ("neurons", entry.neurons),
            ("neuron_scores", entry.neurons_scores),
        ):
            matrix, node = found[name], layout.writers[row].name
            if matrix is None or given is None:
                continue
            matrix[row] = [math.nan if v is None else v for v in given] if isinstance(given, Sequence) else given
            if matrix.dtype != bool:
                check_finite(matrix[row], f"node {node!r}", path)
    return NodeParts(kept=None if (kept == derived).all() else kept, **found)


def _check_widths(parsed: _File, n_writers: int, d_model: int, path: Path) -> None:
    """Refuse lists of neurons of another length than d_model, and more of them than are held in memory."""
    for node, entry in parsed.nodes.items():
        for name, given in (("neurons", entry.neurons), ("neuron scores", entry.neurons_scores)):
            if given is not None and len(given) != d_model:
                width = f"d_model is {d_model}" if d_model else "cfg has no d_model"
                raise FormatError(
                    f"circuit file {str(path)!r}: node {node!r} has {len(given)} {name}; {width}, and every entry of "
                    "its output has one."
                )
            if given is not None and n_writers * d_model > MOST_ENTRIES:
                raise FormatError(
                    f"circuit file {str(path)!r}: neurons of {n_writers:,} nodes of width {d_model:,} are more than "
                    f"the {MOST_ENTRIES:,} entries that are read. Correct cfg."
                )


def _any(entries: Mapping[int, _NodeEntry], name: str) -> bool:
    return any(name in entry.model_fields_set for entry in entries.values())


def check_finite(values: Any, what: str, path: Path) -> None:
    """Refuse infinite scores.

    Raises:
        FormatError: There is one; NaN is none.
    """
    infinite = np.ravel(values)[np.isinf(np.ravel(values))]
    if len(infinite):
        raise FormatError(f"circuit file {str(path)!r}: {what} has the score {infinite[0]}; scores are finite.")


def _parsed(content: Mapping[str, Any], path: Path) -> _File:
    """The file with every value of the right type; names are checked elsewhere."""
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "missing" else f"; got {repr(first['input'])[:SHOWN]}"
        raise FormatError(
            f"circuit file {str(path)!r}: {where}: {first['msg']}{got} ({error.error_count()} errors). Expected "
            "the MIB / EAP-IG format: cfg, nodes and edges."
        ) from error


def _as_today(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The object with the entries that today's files have; anything else stays as it is, to be refused by name."""
    if content.get("n_pos") is not None:
        raise FormatError(
            f"circuit file {str(path)!r} is a graph by position (n_pos is {str(content['n_pos'])[:SHOWN]}); "
            "only graphs whose nodes stand for all positions are read."
        )
    found = dict(content)
    nodes, neurons, edges = (content.get(name) for name in ("nodes", "neurons", "edges"))
    if isinstance(nodes, dict):
        nodes = {name: {"in_graph": node} if isinstance(node, bool) else node for name, node in nodes.items()}
        if isinstance(neurons, dict):
            if strange := [name for name in neurons if not isinstance(nodes.get(name), dict)]:
                raise FormatError(f"circuit file {str(path)!r}: neurons names {strange[0]!r:.80}, which is no node.")
            nodes |= {name: {**nodes[name], "neurons": given} for name, given in neurons.items()}
        found["nodes"] = nodes
    if isinstance(edges, dict):
        found["edges"] = {name: _edge_as_today(edge) for name, edge in edges.items()}
    return found


def _edge_as_today(edge: Any) -> Any:
    """An edge with only `in_graph`: kept ones are not scored, the others have score 0."""
    edge = {"in_graph": edge} if isinstance(edge, bool) else edge
    if isinstance(edge, dict) and "score" not in edge and isinstance(edge.get("in_graph"), bool):
        return {**edge, "score": None if edge["in_graph"] else 0.0}
    return edge


def fitting_spec(cfg: Mapping[str, Any], has_mlp: bool, spec: ModelSpec | None, path: Path) -> ModelSpec:
    """The model's spec if a file is of such a model; without a model, what the file's cfg describes.

    Returns:
        The shape.

    Raises:
        FormatError: The file is of another model, or describes a graph too large to hold.
    """
    n_layers, n_heads, d_model = (cfg[name] for name in ("n_layers", "n_heads", "d_model"))
    parallel = cfg["parallel_attn_mlp"]
    if spec is None:
        _check_size(n_layers, n_heads, path)
        return ModelSpec(
            name=path.stem,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_model=d_model,
            d_head=max(1, d_model // max(1, n_heads)),
            d_vocab=0,
            n_ctx=0,
            parallel=parallel,
            has_mlp=has_mlp,
        )
    theirs = (n_layers, n_heads, d_model or spec.d_model, parallel, has_mlp)
    ours = (spec.n_layers, spec.n_heads, spec.d_model, spec.parallel, spec.has_mlp)
    if theirs != ours:
        raise FormatError(
            f"circuit file {str(path)!r} is of another model: layers, heads, d_model, parallel, MLPs = {theirs}; "
            f"model {spec.name!r} has {ours}."
        )
    return spec


def _check_size(n_layers: int, n_heads: int, path: Path) -> None:
    """Refuse a graph that would fill the memory, before it is laid out."""
    writers, readers = 1 + n_layers * (n_heads + 1), 1 + n_layers * (3 * n_heads + 1)
    if writers * readers > MOST_ENTRIES:
        raise FormatError(
            f"circuit file {str(path)!r}: cfg has n_layers={n_layers}, n_heads={n_heads}, a graph of "
            f"{writers * readers:.3g} entries; at most {MOST_ENTRIES:.3g} are read. Mend cfg, or give the model's spec."
        )
