"""Edges as other programs spell them: EAP-IG's names (ours), auto-circuit's, and ACDC's tuples of hooks.

| Program | Edge |
|---|---|
| EAP-IG, MIB | `m0->a3.h2<q>`, `input->m0`, `a0.h1->logits` |
| auto-circuit | `MLP 0->A3.2.Q`, `Resid Start->MLP 0`, `A0.1->Resid End`; `MLP 0->A3.2` for q, k and v together |
| ACDC | `[child hook, child index, parent hook, parent index]`, an index such as `[null, null, 2]` |

An edge may also be given as the pair of its ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from circuitlab.errors import UnknownNameError
from circuitlab.models.hook_names import inside_a_node, reader_of, writer_of
from circuitlab.parts import Edge, Kind, Node, Reader, Slot

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


def hooks_of(given: Any) -> tuple[str, str] | None:
    """Parent and child hook of an ACDC edge; None for one that is spelt otherwise.

    Returns:
        Both names, or None.
    """
    return None if isinstance(given, str) or len(given) != 4 else (given[2], given[0])


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
