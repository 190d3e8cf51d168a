"""Circuit files: which format a file is in, and how it is written, whole or not at all."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitlab.data.run_files import file_inside
from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.files import parsing, read_json, read_text, whole_file
from circuitlab.graphs import mib_json, mib_tensors, networks
from circuitlab.graphs.foreign_names import edges_of, hooks_of
from circuitlab.graphs.mib_json import Read
from circuitlab.models.hook_names import EMBEDDING, POSITIONS
from circuitlab.parts import Edge, Kind, Layout, ModelSpec

if TYPE_CHECKING:
    from circuitlab.graphs.circuit import Circuit

NODE_LINK = ".node-link.json"
_PICKLES = (".pkl", ".pickle", ".pth", ".bin", ".joblib")


def save_circuit(circuit: Circuit, path: Path) -> None:
    """See `Circuit.save`."""
    write = _writer_of(circuit, path)
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise ConfigError(f"circuit file {str(path)!r} cannot be written: a folder has this name. Name a file.")
    with whole_file(path, "circuit file") as temporary:
        write(temporary)


def _writer_of(circuit: Circuit, path: Path) -> Callable[[Path], object]:
    """What writes this circuit under such a name."""

    def text(content: Callable[[], str]) -> Callable[[Path], object]:
        return lambda to: to.write_text(content(), encoding="utf-8")

    writers: dict[str, Callable[[Path], object]] = {
        ".json": text(lambda: json.dumps(mib_json.to_json(circuit), indent=1) + "\n"),
        ".pt": lambda to: to.write_bytes(mib_tensors.to_bytes(circuit)),
        ".graphml": lambda to: networks.write_graphml(circuit, to),
        ".dot": text(lambda: networks.dot(circuit)),
        ".txt": text(lambda: "".join(f"{edge.name}\n" for edge, _ in circuit.edges())),
    }
    if path.name.endswith(NODE_LINK):
        return text(lambda: networks.node_link(circuit))
    if path.suffix not in writers:
        raise FormatError(
            f"a circuit is saved as .json or .pt (MIB / EAP-IG), .graphml, {NODE_LINK}, .dot or .txt (edge names), not "
            f"as {path.name!r}."
        )
    return writers[path.suffix]


def read_circuit(path: Path, spec: ModelSpec | None) -> Read:
    """See `load_circuit`."""
    with parsing(f"circuit file {str(path)!r}"):
        if path.is_dir():
            path = file_inside(path, "circuit.json") or path / "circuit.json"
        return _read_circuit(path, spec)


def _read_circuit(path: Path, spec: ModelSpec | None) -> Read:
    if path.suffix in _PICKLES:
        raise FormatError(
            f"circuit file {str(path)!r} is a pickle by its name; pickles run code when they are loaded, so none is "
            "read. Save its edges as a JSON list of names, or of [child hook, index, parent hook, index]."
        )
    if path.suffix == ".dot":
        raise FormatError(f"circuit file {str(path)!r} is DOT, which is only written. Give the .json it was made from.")
    if path.suffix == ".pt":
        return mib_tensors.read_tensors(path, spec)
    if path.suffix == ".graphml":
        return _from_graph(networks.read_graphml(path), path, spec)
    if path.suffix == ".txt":
        return _from_list(_lines(path), path, spec)
    content = read_json(
        path,
        "circuit file",
        hint="Give a circuit.json or a run folder.",
        expected="Expected the MIB / EAP-IG format.",
    )
    if isinstance(content, list):
        return _from_list(content, path, spec)
    if not isinstance(content, dict):
        raise FormatError(
            f"circuit file {str(path)!r} is a {type(content).__name__}; expected an object with cfg, nodes, edges, or "
            "a list of edges."
        )
    if isinstance(content.get("nodes"), list):
        return _from_graph(networks.read_node_link(content, path), path, spec)
    return mib_json.read_object(content, path, spec)


def _lines(path: Path) -> list[Any]:
    """One edge a line, a name or a tuple; empty lines and those that begin with # count as none."""
    lines = read_text(path, "circuit file").splitlines()
    found: list[Any] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if not line.startswith(("(", "[")):
            found.append(line)
            continue
        try:
            # JSON's null beside Python's None: a tuple may come out of either language.
            found.append(ast.literal_eval(line.rstrip(",").replace("null", "None")))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise FormatError(f"circuit file {str(path)!r}, line {number}: {line[:80]!r} is no edge.") from error
    return found


def _from_list(given: Sequence[Any], path: Path, spec: ModelSpec | None) -> Read:
    """A list of edges, none of them scored."""
    layout = _layout(path, spec, "a list of edges")
    if not given:
        raise FormatError(f"circuit file {str(path)!r} holds no edge. Write one a line, or as a JSON list.")
    try:
        edges = [edge for one in given for edge in edges_of(one, layout.spec.n_layers)]
        read = _read(layout, ((edge, float("nan")) for edge in edges))
    except UnknownNameError as error:
        raise FormatError(f"circuit file {str(path)!r}: {error}") from error
    _check_embeddings(given, path)
    scores = np.where(read.mask, np.nan, 0.0)
    return Read(layout.spec, read.mask, scores)


def _check_embeddings(given: Sequence[Any], path: Path) -> None:
    """Refuse a list that keeps a reader's edge from one of two embeddings: here both are one writer."""
    acdc = [one for one in given if hooks_of(one)]
    heard = {name: {str(list(one[:2])) for one in acdc if one[2] == name} for name in (EMBEDDING, POSITIONS)}
    if heard[POSITIONS] and (odd := heard[EMBEDDING] ^ heard[POSITIONS]):
        raise FormatError(
            f"circuit file {str(path)!r}: {min(odd)} hears one of {EMBEDDING} and {POSITIONS} and not the other; here "
            "the input is one node. Keep both or neither."
        )


def _from_graph(graph: Any, path: Path, spec: ModelSpec | None) -> Read:
    """A graph of kept edges; edges that are not in it have no score."""
    layout = _layout(path, spec, "a graph of the kept edges alone")
    try:
        read = _read(layout, ((Edge.parse(name), score) for name, score in networks.graph_edges(graph)))
        effects = networks.graph_effects(graph)
    except (UnknownNameError, FormatError) as error:
        raise FormatError(f"circuit file {str(path)!r}: {error}") from error
    mib_json.check_finite(read.scores, "an edge", path)
    mib_json.check_finite(list(effects.values()), "a node", path)
    return Read(layout.spec, read.mask, read.scores, effects)


def _layout(path: Path, spec: ModelSpec | None, what: str) -> Layout:
    if spec is None:
        raise FormatError(
            f"circuit file {str(path)!r} is {what} and does not say of which model. Give its spec (--model)."
        )
    return Layout.of(spec)


def _read(layout: Layout, edges: Iterable[tuple[Edge, float]]) -> Read:
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    scores = np.zeros(mask.shape)
    for edge, score in edges:
        place = layout.edge_index(edge)
        if mask[place] and score == score and scores[place] != score:
            raise FormatError(f"edge {edge.name!r} stands there twice, with the scores {scores[place]} and {score}.")
        mask[place], scores[place] = True, score
    return Read(layout.spec, mask, scores)


def drawn_parts(circuit: Circuit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kept nodes and edges as plain records, for drawing."""
    return drawn_nodes(circuit.nodes, circuit.node_effects), [
        {
            "source": edge.source.name,
            "target": edge.reader.node.name,
            "slot": edge.reader.slot.value if edge.reader.slot else None,
            "score": score,
        }
        for edge, score in circuit.edges()
    ]


def drawn_nodes(nodes: Iterable[Any], effects: Mapping[str, float]) -> list[dict[str, Any]]:
    """Nodes as plain records, for drawing; the logits always among them."""
    found = [
        {
            "name": node.name,
            "kind": node.kind.value,
            "layer": node.layer,
            "head": node.head,
            "sweep_effect": effects.get(node.name),
        }
        for node in nodes
    ]
    if Kind.LOGITS.value not in {n["name"] for n in found}:
        found.append({"name": "logits", "kind": "logits", "layer": None, "head": None, "sweep_effect": None})
    return found
