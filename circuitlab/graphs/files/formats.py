"""Which format a circuit file is in, and how it is written, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.files import file_inside, parsing, read_json, read_text
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.files import lists, mib_json, mib_tensors, networks
from circuitlab.outputs.whole import whole_file
from circuitlab.parts import Edge, ModelSpec

NODE_LINK = ".node-link.json"
_PICKLES = (".pkl", ".pickle", ".pth", ".bin", ".joblib")


def save_circuit(circuit: CircuitData, path: Path) -> None:
    """See `Circuit.save`.

    Raises:
        ConfigError: A folder has this name.
        FormatError: The suffix is not that of a format that is written.
    """
    write = _writer_of(circuit, path)
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise ConfigError(f"circuit file {str(path)!r} cannot be written: a folder has this name. Name a file.")
    with whole_file(path, "circuit file") as temporary:
        write(temporary)


def _writer_of(circuit: CircuitData, path: Path) -> Callable[[Path], object]:
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


def read_circuit(path: Path, spec: ModelSpec | None) -> CircuitData:
    """See `load_circuit`.

    Returns:
        The circuit.

    Raises:
        MissingFileError: There is no such file.
        FileError: It cannot be read.
        FormatError: It is damaged, of another format or of another model.
    """
    with parsing(f"circuit file {str(path)!r}"):
        if path.is_dir():
            path = file_inside(path, "circuit.json") or path / "circuit.json"
        content = _content(path)
        try:
            return _circuit(content, path, spec)
        except (FormatError, UnknownNameError) as error:
            raise FormatError(f"circuit file {str(path)!r}: {error}") from error


def _content(path: Path) -> Any:
    """What a file holds: tensors, a text, or a JSON value."""
    if path.suffix in _PICKLES:
        raise FormatError(
            f"circuit file {str(path)!r} is a pickle by its name; pickles run code when they are loaded, so none is "
            "read. Save its edges as a JSON list of names, or of [child hook, index, parent hook, index]."
        )
    if path.suffix == ".dot":
        raise FormatError(f"circuit file {str(path)!r} is DOT, which is only written. Give the .json it was made from.")
    if path.suffix == ".pt":
        return mib_tensors.load_tensors(path)
    if path.suffix in (".graphml", ".txt"):
        return read_text(path, "circuit file")
    hint, expected = "Give a circuit.json or a run folder.", "Expected the MIB / EAP-IG format."
    return read_json(path, "circuit file", hint=hint, expected=expected)


def _circuit(content: Any, path: Path, spec: ModelSpec | None) -> CircuitData:
    """The circuit of a file; errors do not name the file."""
    if path.suffix == ".pt":
        return mib_tensors.circuit_of(content, path.stem, spec)
    if path.suffix == ".graphml":
        return _from_graph(networks.graph_of_graphml(content), spec)
    content = lists.lines_of(content) if path.suffix == ".txt" else content
    if isinstance(content, list):
        return lists.edges_listed(content, spec)
    if not isinstance(content, dict):
        raise FormatError(
            f"it is a {type(content).__name__}; expected an object with cfg, nodes, edges, or a list of edges."
        )
    if isinstance(content.get("nodes"), list):
        return _from_graph(networks.graph_of_node_link(content), spec)
    return mib_json.read_object(content, path.stem, spec)


def _from_graph(graph: Any, spec: ModelSpec | None) -> CircuitData:
    """A graph of kept edges; edges that are not in it have no score."""
    layout = lists.layout_of(spec, "a graph of the kept edges alone")
    found = lists.kept_edges(layout, ((Edge.parse(name), score) for name, score in networks.graph_edges(graph)))
    effects = networks.graph_effects(graph)
    mib_json.check_finite(found.scores, "an edge")
    mib_json.check_finite(list(effects.values()), "a node")
    return replace(found, node_effects=effects)
