"""Circuits as lists of edges: a JSON list, or a `.txt` with an edge a line."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitlab.errors import FormatError, UnknownNameError
from circuitlab.files import read_text
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.graphs.files.foreign_names import edges_of, hooks_of
from circuitlab.models.hook_names import EMBEDDING, POSITIONS
from circuitlab.parts import Edge, Layout, ModelSpec


def read_lines(path: Path) -> list[Any]:
    """One edge a line, a name or a tuple; empty lines and those that begin with # count as none.

    Returns:
        The edges, as `edges_of` takes them.

    Raises:
        FormatError: A line is not an edge; the message names it.
    """
    lines = read_text(path, "circuit file").splitlines()
    found: list[Any] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if not line.startswith(("(", "[")):
            found.append(line)
            continue
        try:
            # JSON's null or Python's None: a tuple may be in either language.
            found.append(ast.literal_eval(line.rstrip(",").replace("null", "None")))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise FormatError(f"circuit file {str(path)!r}, line {number}: {line[:80]!r} is no edge.") from error
    return found


def edges_listed(given: Sequence[Any], path: Path, spec: ModelSpec | None) -> CircuitData:
    """A list of edges, none of them scored.

    Returns:
        The circuit, its scores NaN.

    Raises:
        FormatError: An entry is not an edge of the model; the message names it.
    """
    layout = layout_of(path, spec, "a list of edges")
    if not given:
        raise FormatError(f"circuit file {str(path)!r} holds no edge. Write one a line, or as a JSON list.")
    try:
        edges = [edge for one in given for edge in edges_of(one, layout.spec.n_layers)]
        found = kept_edges(layout, ((edge, float("nan")) for edge in edges))
    except UnknownNameError as error:
        raise FormatError(f"circuit file {str(path)!r}: {error}") from error
    _check_embeddings(given, path)
    return replace(found, scores=np.where(found.mask, np.nan, 0.0))


def _check_embeddings(given: Sequence[Any], path: Path) -> None:
    """Refuse a list that keeps a reader's edge from one of two embeddings: here both are one writer."""
    acdc = [one for one in given if hooks_of(one)]
    readers = {name: {str(list(one[:2])) for one in acdc if one[2] == name} for name in (EMBEDDING, POSITIONS)}
    if readers[POSITIONS] and (odd := readers[EMBEDDING] ^ readers[POSITIONS]):
        raise FormatError(
            f"circuit file {str(path)!r}: {min(odd)} has an edge from one of {EMBEDDING} and "
            f"{POSITIONS} but not from the other; here "
            "the input is one node. Keep both or neither."
        )


def layout_of(path: Path, spec: ModelSpec | None, what: str) -> Layout:
    """The layout of the model that a file without a shape of its own is of.

    Returns:
        The layout.

    Raises:
        FormatError: No model is given.
    """
    if spec is None:
        raise FormatError(
            f"circuit file {str(path)!r} is {what} and does not say of which model. Give its spec (--model)."
        )
    return Layout.of(spec)


def kept_edges(layout: Layout, edges: Iterable[tuple[Edge, float]]) -> CircuitData:
    """The circuit of some edges, each with its score.

    Returns:
        The circuit; edges that are not given have score 0.

    Raises:
        FormatError: An edge occurs twice, with two scores.
    """
    mask = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
    scores = np.zeros(mask.shape)
    for edge, score in edges:
        place = layout.edge_index(edge)
        if mask[place] and score == score and scores[place] != score:
            raise FormatError(f"edge {edge.name!r} occurs twice, with the scores {scores[place]} and {score}.")
        mask[place], scores[place] = True, score
    return CircuitData(spec=layout.spec, mask=mask, scores=scores)
