"""Variants: the values that a writer or a head's slot takes in several circuits that are run together.

Circuits that agree on everything upstream share a variant; one that is as the run it began from has none. Circuits of a
search follow each other, so that of neighbouring circuits the variants are neighbours too, or the same one: what is
added up are slices, and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Number of the variant of a circuit in which a value is as in the run that it began from.
SAME = -1


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """Values, and which circuit has which.

    Attributes:
        values: One for each variant.
        of: By circuit, the number of its variant, or `SAME`.
    """

    values: Float[Tensor, "variant batch token _"]
    of: Int[np.ndarray, " circuit"]


def distinct(keys: Int[np.ndarray, "circuit _"]) -> tuple[Int[np.ndarray, " circuit"], Int[np.ndarray, " variant"]]:
    """Number equal rows alike, in the order in which they first appear; rows of `SAME` alone get that number.

    Returns:
        The number of every row, and for every number the row that has it first.
    """
    numbers, of, first = dict[bytes, int](), np.full(len(keys), SAME), list[int]()
    if not keys.shape[1]:
        return of, np.array(first, dtype=np.int64)
    raw, size = keys.tobytes(), keys.shape[1] * keys.itemsize
    for circuit in np.flatnonzero((keys != SAME).any(1)).tolist():
        number = numbers.setdefault(raw[circuit * size : (circuit + 1) * size], len(numbers))
        if number == len(first):
            first.append(circuit)
        of[circuit] = number
    return of, np.array(first, dtype=np.int64)


def runs(index: Int[np.ndarray, " place"]) -> Iterator[tuple[slice, slice]]:
    """An index as slices: places, and the values that stand there, one each or one for all of them.

    Places where the index is `SAME` are left out.

    Example:
        >>> [(p.start, p.stop, v.start, v.stop) for p, v in runs(np.array([-1, 0, 1, 2, 2, 2]))]
        [(1, 4, 0, 3), (4, 6, 2, 3)]
    """
    start, numbers = 0, index.tolist()
    while start < len(numbers):
        end = start + 1
        step = numbers[end] - numbers[start] if end < len(numbers) else 0
        if step in (0, 1):
            while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
                end += 1
        if numbers[start] == SAME and step == 1:
            end = start + 1  # what follows begins a run of its own
        if numbers[start] != SAME:
            one = numbers[start]
            yield slice(start, end), slice(one, one + (end - start if step == 1 else 1))
        start = end


def add_up(
    out: Float[Tensor, "variant batch token d_model"],
    base: Float[Tensor, "batch token d_model"],
    parts: Sequence[tuple[Float[Tensor, "_ batch token d_model"], Int[np.ndarray, " variant"]]],
) -> None:
    """Write into `out` the base and, for each part, the value that its index names for every variant."""
    rest = list(parts)
    if rest and min(rest[0][1]) != SAME:
        values, index = rest.pop(0)
        for places, which in runs(index):
            one = values[which].expand(places.stop - places.start, *base.shape)
            torch.add(one, base, out=out[places])
    else:
        out.copy_(base.expand_as(out))
    for values, index in rest:
        for places, which in runs(index):
            out[places].add_(values[which])


def taken(
    variants: Variants,
    circuits: Int[np.ndarray, " chosen"],
    same: Float[Tensor, "1 batch here _"] | None = None,
) -> Float[Tensor, "_ batch here _"]:
    """Values in chosen circuits: one for each, or a single one where they all have that.

    Args:
        variants: The values.
        circuits: Which circuits.
        same: The value of circuits in which it is as in the run that they began from.
    """
    index = variants.of[circuits]
    if (index == index[0]).all():
        return variants.values[index[0]][None] if index[0] != SAME or same is None else same
    if len(index) == len(variants.values) and (index == np.arange(len(index))).all():
        return variants.values
    whole = variants.values if same is None else torch.cat([variants.values, same.to(variants.values)])
    return whole[torch.from_numpy(index).to(whole.device)]
