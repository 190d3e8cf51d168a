"""The MIB / EAP-IG `.json` format, both ways without loss.

What is read and written is what EAP-IG's `Graph.from_json` and `to_json` read and write: `cfg`, `nodes` (`in_graph`,
and where there are any `score`, `neurons`, `neurons_scores`) and `edges` (`score` and `in_graph`, always both).

Files of older versions of EAP-IG are read too: nodes that are plain booleans, neurons in an object of their own, a
`cfg` without `d_model`, and edges without scores or that are plain booleans. A score that is NaN or null means the
same in `.json` and `.pt`: the part was not scored, and is always kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from circuitlab.errors import FormatError, UnknownNameError
from circuitlab.graphs.circuit_data import CircuitData, NodeParts
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
# Fields of `NodeParts`: their keys in a file, and what a node without the key has.
_OF_NODES = {
    "scores": ("score", math.nan),
    "neurons": ("neurons", False),
    "neuron_scores": ("neurons_scores", math.nan),
}


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
    found = {key: getattr(parts, name) for name, (key, _) in _OF_NODES.items()}
    return {key: matrix[row].tolist() for key, matrix in found.items() if matrix is not None}


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


def read_object(content: Mapping[str, Any], name: str, spec: ModelSpec | None) -> CircuitData:
    """A circuit from the JSON object of a file; see `load_circuit`.

    Args:
        content: The object.
        name: Name of the model, where none is given.
        spec: Shape of the model, if it is given.

    Returns:
        The circuit.

    Raises:
        FormatError: A key is missing, has a value of the wrong type, or does not fit the graph.
        UnknownNameError: A node or edge does not exist.
    """
    parsed = _parsed(_as_today(content))
    nodes = {Node.parse(node) for node in parsed.nodes}
    shape = fitting_spec(parsed.cfg.model_dump(), any(node.kind is Kind.MLP for node in nodes), spec, name)
    layout = Layout.of(shape)
    if strange := nodes - set(layout.nodes):
        raise UnknownNameError.of("node", min(node.name for node in strange), (node.name for node in layout.nodes))
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    scores, second = np.zeros(mask.shape), np.full(mask.shape, np.nan)
    for edge, entry in parsed.edges.items():
        place = layout.edge_index(Edge.parse(edge))
        # NaN is EAP-IG's mark of an edge that was never scored; infinity is invalid.
        mask[place], scores[place], second[place] = entry.in_graph, _float(entry.score), _float(entry.second_score)
        check_finite(scores[place], f"edge {edge!r}")
    check_finite(second, "a second score")
    effects = {node: entry.sweep_effect for node, entry in parsed.nodes.items() if entry.sweep_effect is not None}
    return CircuitData(
        spec=shape,
        mask=mask,
        scores=scores,
        node_effects=effects,
        node_parts=_node_parts(parsed, layout, mask),
        second_scores=None if np.isnan(second).all() else second,
        selection=selection_of(parsed.selection),
    )


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def selection_of(record: Any) -> Selection | None:
    """The selection that a file holds, if it holds one.

    Returns:
        The selection, or None.

    Raises:
        FormatError: It is none.
    """
    try:
        return None if record is None else Selection.of_record(record)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{SELECTION} is no record of a selection: {error}. Leave the key out.") from error


def _node_parts(parsed: _File, layout: Layout, mask: Bool[np.ndarray, "writer reader"]) -> NodeParts:
    """Node records of the file; as in EAP-IG, nodes without a score have NaN if others have one."""
    entries = {layout.writer_index(Node.parse(n)): entry for n, entry in parsed.nodes.items() if n != Kind.LOGITS.value}
    _check_widths(parsed, len(layout.writers), layout.spec.d_model)
    kept = kept_nodes(mask, layout)[:-1]
    kept[list(entries)] = [entry.in_graph for entry in entries.values()]
    found = dict[str, np.ndarray]()
    for name, (key, blank) in _OF_NODES.items():
        given = {row: getattr(entry, key) for row, entry in entries.items() if key in entry.model_fields_set}
        if not given:
            continue
        width = () if name == "scores" else (layout.spec.d_model,)
        found[name] = np.full((len(layout.writers), *width), blank)
        for row, values in given.items():
            if values is not None:
                found[name][row] = np.asarray(values, found[name].dtype)  # None is NaN
                check_finite(found[name][row], f"node {layout.writers[row].name!r}")
    return node_parts(kept, mask, layout, found)


def node_parts(
    kept: Bool[np.ndarray, " writer"],
    mask: Bool[np.ndarray, "writer reader"],
    layout: Layout,
    found: Mapping[str, np.ndarray],
) -> NodeParts:
    """The parts of nodes that a file has, without the kept nodes where they follow from the kept edges.

    Returns:
        The parts.
    """
    derived = kept_nodes(mask, layout)[:-1]
    return NodeParts(kept=None if (kept == derived).all() else kept, **found)


def _check_widths(parsed: _File, n_writers: int, d_model: int) -> None:
    """Refuse lists of neurons of another length than d_model, and more of them than are held in memory."""
    for node, entry in parsed.nodes.items():
        for name, given in (("neurons", entry.neurons), ("neuron scores", entry.neurons_scores)):
            if given is not None and len(given) != d_model:
                width = f"d_model is {d_model}" if d_model else "cfg has no d_model"
                raise FormatError(
                    f"node {node!r} has {len(given)} {name}; {width}, and every entry of its output has one."
                )
            if given is not None and n_writers * d_model > MOST_ENTRIES:
                raise FormatError(
                    f"neurons of {n_writers:,} nodes of width {d_model:,} are more than the {MOST_ENTRIES:,} entries "
                    "that are read. Correct cfg."
                )


def check_finite(values: Any, what: str) -> None:
    """Refuse infinite scores.

    Raises:
        FormatError: There is one; NaN is none.
    """
    infinite = np.ravel(values)[np.isinf(np.ravel(values))]
    if len(infinite):
        raise FormatError(f"{what} has the score {infinite[0]}; scores are finite.")


def _parsed(content: Mapping[str, Any]) -> _File:
    """The file with every value of the right type; names are checked elsewhere."""
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "missing" else f"; got {repr(first['input'])[:SHOWN]}"
        raise FormatError(
            f"{where}: {first['msg']}{got} ({error.error_count()} errors). Expected the MIB / EAP-IG format: cfg, "
            "nodes and edges."
        ) from error


def _as_today(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the entries that today's files have; anything else stays as it is, to be refused by name."""
    if content.get("n_pos") is not None:
        raise FormatError(
            f"it is a graph by position (n_pos is {str(content['n_pos'])[:SHOWN]}); only graphs with one "
            "node for all positions are read."
        )
    found = dict(content)
    nodes, neurons, edges = (content.get(name) for name in ("nodes", "neurons", "edges"))
    if isinstance(nodes, dict):
        nodes = {name: {"in_graph": node} if isinstance(node, bool) else node for name, node in nodes.items()}
        if isinstance(neurons, dict):
            if strange := [name for name in neurons if not isinstance(nodes.get(name), dict)]:
                raise FormatError(f"neurons names {strange[0]!r:.80}, which is no node.")
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


def fitting_spec(cfg: Mapping[str, Any], has_mlp: bool, spec: ModelSpec | None, name: str) -> ModelSpec:
    """The model's spec if a file is of such a model; without a model, what the file's cfg describes.

    Args:
        cfg: The file's cfg.
        has_mlp: Whether its graph has MLPs.
        spec: Shape of the model, if it is given.
        name: Name of the model, where none is given.

    Returns:
        The shape.

    Raises:
        FormatError: The file is of another model, or describes a graph too large to hold.
    """
    n_layers, n_heads, d_model = (cfg[name] for name in ("n_layers", "n_heads", "d_model"))
    parallel = cfg["parallel_attn_mlp"]
    if spec is None:
        _check_size(n_layers, n_heads)
        return ModelSpec(
            name=name,
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
            f"it is of another model: layers, heads, d_model, parallel, MLPs = {theirs}; model {spec.name!r} has "
            f"{ours}."
        )
    return spec


def _check_size(n_layers: int, n_heads: int) -> None:
    """Refuse a graph that would fill the memory, before it is laid out."""
    writers, readers = 1 + n_layers * (n_heads + 1), 1 + n_layers * (3 * n_heads + 1)
    if writers * readers > MOST_ENTRIES:
        raise FormatError(
            f"cfg has n_layers={n_layers}, n_heads={n_heads}, a graph of {writers * readers:.3g} entries; at most "
            f"{MOST_ENTRIES:.3g} are read. Correct cfg, or give the model's spec."
        )
