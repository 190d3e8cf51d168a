"""Circuits in other programs' formats: the MIB / EAP-IG JSON, networkx, GraphML."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.graphs.ranking import edge_places
from circuitlab.parts import Edge, Kind, Layout, ModelSpec, Node, Slot

if TYPE_CHECKING:
    from circuitlab.graphs.circuit import Circuit


# A matrix of this many entries takes 900 MB with its mask. Llama-3-70B has 80 million; a file that asks for more asks
# for memory, not for a circuit.
MOST_ENTRIES = 100_000_000
# Ours, beside the format's own keys, which a reader of the format leaves alone: the name that GraphML has it under.
EFFECT = "sweep_effect"
SHOWN = 40  # characters of a faulty value


class _Strict(BaseModel):
    # Lax checks would take "yes" for True.
    model_config = ConfigDict(extra="allow", strict=True)


class _Cfg(_Strict):
    n_layers: int = Field(ge=1, le=1_000_000)
    n_heads: int = Field(ge=1, le=1_000_000)
    d_model: int = Field(ge=1, le=1_000_000_000)
    parallel_attn_mlp: bool = False


class _NodeEntry(_Strict):
    in_graph: bool
    sweep_effect: float | None = None


class _EdgeEntry(_Strict):
    score: float | None
    in_graph: bool


class _File(_Strict):
    cfg: _Cfg
    nodes: dict[str, _NodeEntry]
    edges: dict[str, _EdgeEntry]


def to_json(circuit: Circuit) -> dict[str, Any]:
    """The circuit as the object that EAP-IG's `Graph.from_json` reads; both fields stand on every edge.

    Nodes that were swept have their effect under a key of ours, which their reader leaves alone.
    """
    layout, kept = circuit.layout, {node.name for node in circuit.nodes}
    edges = {}
    for row, column in _as_constructed(layout):
        name = f"{layout.writers[row].name}->{layout.readers[column].name}"
        edges[name] = {"score": float(circuit.scores[row, column]), "in_graph": bool(circuit.mask[row, column])}
    return {
        "cfg": {
            "n_layers": circuit.spec.n_layers,
            "n_heads": circuit.spec.n_heads,
            "parallel_attn_mlp": circuit.spec.parallel,
            "d_model": circuit.spec.d_model,
        },
        "nodes": {
            node.name: {"in_graph": node.name in kept, **_effect_of(node, circuit.node_effects)}
            for node in layout.nodes
        },
        "edges": edges,
    }


def _effect_of(node: Node, effects: Mapping[str, float]) -> dict[str, float]:
    return {EFFECT: float(effects[node.name])} if node.name in effects else {}


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


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What a circuit file says; the fields are those of a `Circuit`."""

    spec: ModelSpec
    mask: Bool[np.ndarray, "writer reader"]
    scores: Float[np.ndarray, "writer reader"]
    node_effects: Mapping[str, float]


def read_json(path: Path, spec: ModelSpec | None) -> Read:
    """See `load_circuit`."""
    path = path / "circuit.json" if path.is_dir() else path
    parsed = _parsed(path)
    try:
        nodes = [Node.parse(name) for name in parsed.nodes]
        shape = _fitting_spec(parsed, nodes, spec, path)
        layout = Layout.of(shape)
        if strange := set(nodes) - set(layout.nodes):
            first = min(node.name for node in strange)
            raise UnknownNameError.of("node", first, (node.name for node in layout.nodes))
        places = {name: layout.edge_index(Edge.parse(name)) for name in parsed.edges}
    except UnknownNameError as error:
        raise FormatError(f"circuit file {str(path)!r}: {error}") from error
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    scores = np.zeros(mask.shape)
    for name, entry in parsed.edges.items():
        mask[places[name]] = entry.in_graph
        # NaN is EAP-IG's mark of an edge that was never scored; infinity is nobody's.
        scores[places[name]] = math.nan if entry.score is None else entry.score
        if math.isinf(scores[places[name]]):
            raise FormatError(
                f"circuit file {str(path)!r}: edge {name!r} has the score {entry.score}; scores are finite."
            )
    effects = {name: entry.sweep_effect for name, entry in parsed.nodes.items() if entry.sweep_effect is not None}
    return Read(shape, mask, scores, effects)


def _parsed(path: Path) -> _File:
    """The file with every value of the right kind; whether the names are the model's is not asked here."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise FormatError(
                f"circuit file {str(path)!r} is a {type(content).__name__}; expected an object with cfg, nodes, edges."
            )
        return _File.model_validate(content)
    except FileNotFoundError:
        raise FormatError(f"circuit file {str(path)!r} does not exist. Give a circuit.json or a run folder.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "missing" else f"; got {repr(first['input'])[:SHOWN]}"
        raise FormatError(
            f"circuit file {str(path)!r}: {where}: {first['msg']}{got} ({error.error_count()} faults in all)."
        ) from error
    # A ValueError that is no JSONDecodeError is a number of more digits than Python reads.
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"circuit file {str(path)!r} is no JSON: {error}. Expected the MIB / EAP-IG format."
        ) from error


def _fitting_spec(parsed: _File, nodes: Sequence[Node], spec: ModelSpec | None, path: Path) -> ModelSpec:
    """The model's spec if the file is of such a model; without a model, what the file's cfg describes."""
    cfg = parsed.cfg
    has_mlp = any(node.kind is Kind.MLP for node in nodes)
    if spec is None:
        _check_size(cfg, path)
        return ModelSpec(
            name=path.stem,
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_kv_heads=cfg.n_heads,
            d_model=cfg.d_model,
            d_head=max(1, cfg.d_model // max(1, cfg.n_heads)),
            d_vocab=0,
            n_ctx=0,
            parallel=cfg.parallel_attn_mlp,
            has_mlp=has_mlp,
        )
    theirs = (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.parallel_attn_mlp, has_mlp)
    ours = (spec.n_layers, spec.n_heads, spec.d_model, spec.parallel, spec.has_mlp)
    if theirs != ours:
        raise FormatError(
            f"circuit file {str(path)!r} is of another model: layers, heads, d_model, parallel, MLPs = {theirs}; "
            f"model {spec.name!r} has {ours}."
        )
    return spec


def _check_size(cfg: _Cfg, path: Path) -> None:
    """Refuse a graph that would fill the memory, before it is laid out."""
    writers, readers = 1 + cfg.n_layers * (cfg.n_heads + 1), 1 + cfg.n_layers * (3 * cfg.n_heads + 1)
    if writers * readers > MOST_ENTRIES:
        raise FormatError(
            f"circuit file {str(path)!r}: cfg has n_layers={cfg.n_layers}, n_heads={cfg.n_heads}, a graph of "
            f"{writers * readers:.3g} entries; at most {MOST_ENTRIES:.3g} are read. Mend cfg, or give the model's spec."
        )


def to_networkx(circuit: Circuit, collapse: bool) -> nx.MultiDiGraph | nx.DiGraph:
    """See `Circuit.to_networkx`."""
    graph = nx.DiGraph() if collapse else nx.MultiDiGraph()
    # read_graphml sets both defaults; with them here, a graph that was written and read again compares equal.
    graph.graph.update(model=circuit.spec.name, node_default={}, edge_default={})
    for node in circuit.nodes:
        graph.add_node(node.name, **_node_attributes(node, circuit.node_effects))
    for edge, score in circuit.edges():
        source, target = edge.source.name, edge.reader.node.name
        if collapse:
            before = graph.edges[source, target]["score"] if graph.has_edge(source, target) else 0.0
            graph.add_edge(source, target, score=before + score)
            continue
        # GraphML has no None: an edge into an MLP or the logits has no slot attribute value but the empty word.
        slot = edge.reader.slot.value if edge.reader.slot else ""
        graph.add_edge(source, target, key=edge.name, slot=slot, score=score)
    return graph


def _node_attributes(node: Node, effects: Mapping[str, float]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"kind": node.kind.value}
    if node.layer is not None:
        attributes["layer"] = node.layer
    if node.head is not None:
        attributes["head"] = node.head
    return {**attributes, **_effect_of(node, effects)}


def save_circuit(circuit: Circuit, path: Path) -> None:
    """See `Circuit.save`."""
    writers: dict[str, Callable[[Path], object]] = {
        ".json": lambda to: to.write_text(json.dumps(to_json(circuit), indent=1) + "\n", encoding="utf-8"),
        ".graphml": lambda to: nx.write_graphml(to_networkx(circuit, collapse=False), to, named_key_ids=True),
    }
    if path.suffix not in writers:
        raise FormatError(f"a circuit is saved as .json (MIB / EAP-IG) or .graphml, not as {path.name!r}.")
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise ConfigError(f"circuit file {str(path)!r} cannot be written: a folder has this name. Name a file.")
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix](temporary)
        os.replace(temporary, path)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"circuit file {str(path)!r} cannot be written: {error.strerror or error} ({error.filename!r}). "
            "Name another place."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def drawn_parts(circuit: Circuit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kept nodes and edges as plain records, for drawing."""
    nodes = [
        {
            "name": node.name,
            "kind": node.kind.value,
            "layer": node.layer,
            "head": node.head,
            "sweep_effect": circuit.node_effects.get(node.name),
        }
        for node in circuit.nodes
    ]
    if Kind.LOGITS.value not in {n["name"] for n in nodes}:
        nodes.append({"name": "logits", "kind": "logits", "layer": None, "head": None, "sweep_effect": None})
    edges = [
        {
            "source": edge.source.name,
            "target": edge.reader.node.name,
            "slot": edge.reader.slot.value if edge.reader.slot else None,
            "score": score,
        }
        for edge, score in circuit.edges()
    ]
    return nodes, edges
