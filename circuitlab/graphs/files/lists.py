"""Circuits as lists of edges: a JSON list, or a `.txt` with an edge a line, in the spelling of three programs.

| Program | Edge |
|---|---|
| EAP-IG, MIB | `m0->a3.h2<q>`, `input->m0`, `a0.h1->logits` |
| auto-circuit | `MLP 0->A3.2.Q`, `Resid Start->MLP 0`, `A0.1->Resid End`; `MLP 0->A3.2` for q, k and v together |
| ACDC | `[child hook, child index, parent hook, parent index]`, an index such as `[null, null, 2]` |

An edge may also be given as the pair of its ends.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from circuitlab.errors import FormatError, UnknownNameError
from circuitlab.graphs.circuit_data import CircuitData
from circuitlab.models.hook_names import EMBEDDING, POSITIONS, inside_a_node, reader_of, writer_of
from circuitlab.parts import Edge, Kind, Layout, ModelSpec, Node, Reader, Slot

_HEAD = re.compile(r"A(\d+)\.(\d+)(?:\.([QKV]))?")
_MLP = re.compile(r"MLP (\d+)")
_STARTS, _END = ("Resid Start",), ("Resid End", "Resid Final")


def edges_of(given: Any, n_layers: int) -> list[Edge]:
    """The edges of one entry of a list: one; three for a head without slot; none for edges inside a node.

    Args:
        given: A name, a pair of names, or a tuple of four as ACDC has it.
        n_layers: Of the model, whose last stream ACDC calls by its layer.

    Returns:
        The edges.

    Raises:
        UnknownNameError: It is spelt as no edge.
    """
    if isinstance(given, str):
        source, arrow, target = given.partition("->")
        if not arrow:
            raise UnknownNameError(_strange(given))
        return _named(source.strip(), target.strip(), given)
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(end, str) for end in given):
        return _named(given[0].strip(), given[1].strip(), f"{given[0]}->{given[1]}")
    if isinstance(given, Sequence) and len(given) == 4 and isinstance(given[0], str) and isinstance(given[2], str):
        child, parent = given[0], given[2]
        if inside_a_node(child, parent):
            return []
        return [Edge(writer_of(parent, _head(given[3])), reader_of(child, _head(given[1]), n_layers))]
    raise UnknownNameError(_strange(given))


def _named(source: str, target: str, whole: str) -> list[Edge]:
    """Whichever program's names; the two ends are of one."""
    if not (_HEAD.fullmatch(source) or _MLP.fullmatch(source) or source in _STARTS):
        return [Edge.parse(f"{source}->{target}")]
    writer = _auto_circuit_writer(source)
    return [Edge(writer, reader) for reader in _auto_circuit_readers(target, whole)]


def _auto_circuit_writer(name: str) -> Node:
    if match := _MLP.fullmatch(name):
        return Node(Kind.MLP, int(match[1]))
    match = _HEAD.fullmatch(name)
    if match and match[3]:
        raise UnknownNameError(f"{name!r} does not write: a head writes as a whole, A{match[1]}.{match[2]}.")
    return Node(Kind.HEAD, int(match[1]), int(match[2])) if match else Node(Kind.INPUT)


def _auto_circuit_readers(name: str, whole: str) -> list[Reader]:
    if match := _HEAD.fullmatch(name):
        head = Node(Kind.HEAD, int(match[1]), int(match[2]))
        return [Reader(head, Slot(match[3].lower()))] if match[3] else [Reader(head, slot) for slot in Slot]
    if match := _MLP.fullmatch(name):
        return [Reader(Node(Kind.MLP, int(match[1])))]
    if name in _END:
        return [Reader(Node(Kind.LOGITS))]
    raise UnknownNameError(_strange(whole))


def _head(index: Any) -> int | None:
    """The head's number at the end of an index; None where all are meant."""
    entries = list(index) if isinstance(index, Sequence) and not isinstance(index, str) else [index]
    if any(entry is not None for entry in entries[:-1]) or not entries:
        raise UnknownNameError(f"index {index!r} picks batches or positions; only its last entry may be a number.")
    last = entries[-1]
    if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 0):
        raise UnknownNameError(f"index {index!r} does not end with the number of a head.")
    return last


def _strange(given: Any) -> str:
    return (
        f"{str(given)[:80]!r} is no edge. Edges are spelt 'm0->a3.h2<q>' (EAP-IG), 'MLP 0->A3.2.Q' (auto-circuit), or "
        "[child hook, index, parent hook, index] (ACDC)."
    )


def lines_of(text: str) -> list[Any]:
    """One edge a line, a name or a tuple; empty lines and those that begin with # count as none.

    Returns:
        The edges, as `edges_of` takes them.

    Raises:
        FormatError: A line is not an edge; the message names it.
    """
    found: list[Any] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if not line.startswith(("(", "[")):
            found.append(line)
            continue
        try:
            # JSON's null or Python's None: a tuple may be in either language.
            found.append(ast.literal_eval(line.rstrip(",").replace("null", "None")))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise FormatError(f"line {number}: {line[:80]!r} is no edge.") from error
    return found


def edges_listed(given: Sequence[Any], spec: ModelSpec | None) -> CircuitData:
    """A list of edges, none of them scored.

    Returns:
        The circuit, its scores NaN.

    Raises:
        FormatError: No model is given, there is no edge, or edges from one of the two embeddings are missing.
        UnknownNameError: An entry is not an edge of the model; the message names it.
    """
    layout = layout_of(spec, "a list of edges")
    if not given:
        raise FormatError("it holds no edge. Write one a line, or as a JSON list.")
    edges = [edge for one in given for edge in edges_of(one, layout.spec.n_layers)]
    found = kept_edges(layout, ((edge, float("nan")) for edge in edges))
    _check_embeddings(given)
    return replace(found, scores=np.where(found.mask, np.nan, 0.0))


def _check_embeddings(given: Sequence[Any]) -> None:
    """Refuse a list that keeps a reader's edge from one of two embeddings: here both are one writer."""
    acdc = [one for one in given if not isinstance(one, str) and len(one) == 4]
    readers = {name: {str(list(one[:2])) for one in acdc if one[2] == name} for name in (EMBEDDING, POSITIONS)}
    if readers[POSITIONS] and (odd := readers[EMBEDDING] ^ readers[POSITIONS]):
        raise FormatError(
            f"{min(odd)} has an edge from one of {EMBEDDING} and {POSITIONS} but not from the other; here the input is "
            "one node. Keep both or neither."
        )


def layout_of(spec: ModelSpec | None, what: str) -> Layout:
    """The layout of the model that a file without a shape of its own is of.

    Returns:
        The layout.

    Raises:
        FormatError: No model is given.
    """
    if spec is None:
        raise FormatError(f"it is {what} and does not say of which model. Give its spec (--model).")
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
