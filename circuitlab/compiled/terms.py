"""Matrices that programs are written with: what matches what, tables, and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from circuitlab.compiled.program import Apply, Attend, Match

# Between the tokens a head attends to and the others, in nats: what is left for each of the others is 5e-5.
NATS = 10.0


def equal(query: str, key: str, size: int, nats: float = NATS) -> Match:
    """Attend where the key's value is the query's.

    Returns:
        The term of a score.
    """
    return Match(query=query, key=key, weight=nats * np.eye(size))


def related(query: str, key: str, size: int, wanted: Callable[[int], int], nats: float = NATS) -> Match:
    """Attend where the key's value is a function of the query's; values outside of the range are cut to its ends.

    Returns:
        The term of a score.
    """
    keys = np.clip([wanted(value) for value in range(size)], 0, size - 1)
    return Match(query=query, key=key, weight=nats * np.eye(size)[keys])


def prefer(key: str, size: int, values: Sequence[int], nats: float = NATS) -> Match:
    """Attend to keys of these values.

    Returns:
        The term of a score.
    """
    weight = np.zeros((1, size))
    weight[:, list(values)] = nats
    return Match(query=None, key=key, weight=weight)


def selection(size: int, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, "value written"]:
    """A matrix that writes number i for the values in `rows[i]`.

    Returns:
        The matrix.
    """
    found = np.zeros((size, len(rows)))
    for number, values in enumerate(rows):
        found[list(values), number] = 1
    return found


def lookup(writes: str, value: str, size: int, *score: Match) -> Attend:
    """A head that writes one variable's values as they are; without terms, their mean over all visible tokens.

    Returns:
        The head.
    """
    return Attend(writes=writes, value=value, through=np.eye(size), score=score)


def table(
    writes: str, first: tuple[str, int], second: tuple[str, int], size: int, entry: Callable[[int, int], int | None]
) -> Apply:
    """An MLP that looks up one value for each pair of values of two variables; None writes nothing.

    One neuron a pair: it is 1 where both have these values and 0 elsewhere.

    Returns:
        The MLP.
    """
    (one, one_size), (other, other_size) = first, second
    found = ((i, j, entry(i, j)) for i in range(one_size) for j in range(other_size))
    cells = [(i, j, value) for i, j, value in found if value is not None]
    rows, columns, values = np.transpose(cells)
    weights = {one: np.eye(one_size)[:, rows], other: np.eye(other_size)[:, columns]}
    out = np.eye(size)[values]
    return Apply(writes=writes, reads=weights, bias=np.full(len(cells), -1.0), out=out, shift=np.zeros(size))
