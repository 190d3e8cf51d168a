"""The MIB / EAP-IG `.pt` format, both ways without loss; loaded as weights only, so that no file runs code.

What is read and written is what EAP-IG's `Graph.from_pt` and `to_pt` read and write: `cfg`, `src_nodes`, `dst_nodes`,
`edges_scores`, `edges_in_graph`, `nodes_in_graph`, and where there are any `nodes_scores`, `neurons_in_graph`,
`neurons_scores`. NaN is a score that was never given: such a part is always kept. Entries where the model has no edge
are left out: EAP-IG's selection of nodes fills whole rows.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from circuitlab.errors import FormatError
from circuitlab.files import check_archive, parsing
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.files.mib_json import SELECTION, cfg_of, check_finite, fitting_spec, node_parts, selection_of
from circuitlab.graphs.prune import kept_nodes, real_edges
from circuitlab.parts import Layout, ModelSpec

NEEDED = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
_OPTIONAL = {"nodes_scores": "scores", "neurons_in_graph": "neurons", "neurons_scores": "neuron_scores"}
# An additional key, which readers of the format ignore.
SECOND = "edges_second_scores"
_IN_CFG = {"n_layers": int, "n_heads": int, "d_model": int, "parallel_attn_mlp": bool}


def to_bytes(circuit: CircuitData) -> bytes:
    """The content of the file, the same bytes for the same circuit.

    Returns:
        The bytes.
    """
    import torch

    layout, parts = circuit.layout, circuit.node_parts
    kept = kept_nodes(circuit.mask, layout)[:-1] if parts.kept is None else parts.kept
    content: dict[str, Any] = {
        "cfg": cfg_of(circuit.spec),
        "src_nodes": [node.name for node in layout.writers],
        "dst_nodes": [reader.name for reader in layout.readers],
        "edges_scores": torch.tensor(np.where(real_edges(layout), circuit.scores, 0.0)),
        "edges_in_graph": torch.tensor(circuit.mask),
        "nodes_in_graph": torch.tensor(kept),
    }
    given = {name: getattr(parts, ours) for name, ours in _OPTIONAL.items()}
    content |= {name: torch.tensor(matrix) for name, matrix in given.items() if matrix is not None}
    if circuit.second_scores is not None:
        content[SECOND] = torch.tensor(circuit.second_scores)
    if circuit.selection is not None:
        content[SELECTION] = circuit.selection.to_record()
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def circuit_of(content: Any, name: str, spec: ModelSpec | None) -> CircuitData:
    """A circuit from what a `.pt` file holds; see `load_circuit`.

    Args:
        content: What was loaded.
        name: Name of the model, where none is given.
        spec: Shape of the model, if it is given.

    Returns:
        The circuit.

    Raises:
        FormatError: A key is missing, or a value does not fit the graph.
    """
    _check(content)
    cfg = dict(content["cfg"])
    for key, kind in _IN_CFG.items():
        # In old files the cfg may lack the last; the others are required.
        if key not in cfg and key != "parallel_attn_mlp":
            raise FormatError(f"cfg.{key} is missing.")
        if type(cfg.setdefault(key, False)) is not kind or (kind is int and cfg[key] < 1):
            raise FormatError(f"cfg.{key} is {cfg[key]!r}, no {kind.__name__} above 0.")
    shape = fitting_spec(cfg, any(str(node).startswith("m") for node in content["src_nodes"]), spec, name)
    layout = Layout.of(shape)
    _check_names(content["src_nodes"], [node.name for node in layout.writers], "src_nodes")
    _check_names(content["dst_nodes"], [reader.name for reader in layout.readers], "dst_nodes")
    edges, writers = (len(layout.writers), len(layout.readers)), (len(layout.writers),)
    real = real_edges(layout)
    mask = _matrix(content, "edges_in_graph", edges) & real
    found = {
        ours: _matrix(content, key, writers if ours == "scores" else (*writers, shape.d_model))
        for key, ours in _OPTIONAL.items()
        if content.get(key) is not None
    }
    return CircuitData(
        spec=shape,
        mask=mask,
        scores=np.where(real, _matrix(content, "edges_scores", edges), 0.0),
        node_parts=node_parts(_matrix(content, "nodes_in_graph", writers), mask, layout, found),
        second_scores=_matrix(content, SECOND, edges) if content.get(SECOND) is not None else None,
        selection=selection_of(content.get(SELECTION)),
    )


def load_tensors(path: Path) -> Any:
    """What a `.pt` file holds, loaded without running code.

    Returns:
        The content.

    Raises:
        FormatError: It is no tensor file, or contains anything but tensors, numbers and names.
    """
    import torch

    check_archive(path, "circuit file")
    try:
        with parsing(f"circuit file {str(path)!r}"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FormatError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise FormatError(
            f"circuit file {str(path)!r} is no tensor file, or holds more than tensors, numbers and names: "
            f"{str(error.__cause__).splitlines()[0][:160]} It is not loaded, for it could run code."
        ) from error


def _check(content: Any) -> None:
    """Refuse what is no dictionary with the needed keys."""
    if not isinstance(content, dict):
        raise FormatError(f"it holds a {type(content).__name__}; expected a dictionary with {', '.join(NEEDED)}.")
    if missing := [name for name in NEEDED if name not in content]:
        raise FormatError(f"it has no {missing[0]!r}; needed are {', '.join(NEEDED)}.")
    for name, kind in (("cfg", Mapping), ("src_nodes", list), ("dst_nodes", list)):
        if not isinstance(content[name], kind):
            raise FormatError(f"{name} is a {type(content[name]).__name__}.")


def _check_names(given: Sequence[Any], ours: Sequence[str], what: str) -> None:
    if len(given) != len(ours):
        raise FormatError(f"{what} has {len(given)} names; a graph of this cfg has {len(ours)}.")
    for place, (one, expected) in enumerate(zip(given, ours, strict=True)):
        if one != expected:
            raise FormatError(f"{what}[{place}] is {str(one)!r:.80}; expected {expected!r}.")


def _matrix(content: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the file as a matrix: booleans for what is in the graph, float64 for scores."""
    import torch

    given, wants_bool = content[name], name.endswith("in_graph")
    if torch.is_tensor(given) and (given.layout != torch.strided or given.is_quantized or given.device.type != "cpu"):
        kind = f"{given.layout}, {given.dtype} tensor on {given.device}"
        raise FormatError(f"{name} is a {kind}; expected a plain one. Save it dense.")
    if not torch.is_tensor(given) or tuple(given.shape) != shape:
        got = f"a tensor {tuple(given.shape)}" if torch.is_tensor(given) else f"a {type(given).__name__}"
        raise FormatError(f"{name} is {got}; expected a tensor {shape}.")
    if (given.dtype == torch.bool) != wants_bool or given.is_complex():
        raise FormatError(f"{name} holds {given.dtype}; expected {'true and false' if wants_bool else 'numbers'}.")
    if wants_bool:
        return given.numpy()
    scores = given.detach().double().resolve_neg().numpy()
    check_finite(scores, name)
    return scores
