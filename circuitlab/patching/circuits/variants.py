"""Variants: the values that a node reads or computes in several circuits that are run together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """What a node reads or computes in several circuits.

    Attributes:
        values: The distinct ones.
        of: By circuit, which of them it has.
    """

    values: Float[Tensor, "variant batch token _"]
    of: Int[np.ndarray, " circuit"]

    def at(self, circuits: Int[np.ndarray, " chosen"]) -> Float[Tensor, "_ batch token _"]:
        """The values of chosen circuits; a single one where all of these have the same."""
        return taken(self.values, self.of[circuits])


def distinct(keys: np.ndarray) -> tuple[Int[np.ndarray, " circuit"], Int[np.ndarray, " variant"]]:
    """Number equal rows alike, in the order in which they first appear: the number of each, and where each is first."""
    numbers, of, first = dict[bytes, int](), list[int](), list[int]()
    raw, size = keys.tobytes(), keys.shape[1] * keys.itemsize
    for row in range(len(keys)):
        number = numbers.setdefault(raw[row * size : (row + 1) * size], len(numbers))
        if number == len(first):
            first.append(row)
        of.append(number)
    return np.array(of), np.array(first)


def taken(
    values: Float[Tensor, "variant batch token _"], index: Int[np.ndarray, " chosen"]
) -> Float[Tensor, "_ batch token _"]:
    """Chosen values; a single one where all are the same, and no copy where they are taken in their order."""
    if (index == index[0]).all():
        return values[index[0]][None]
    if len(index) == len(values) and (index == np.arange(len(index))).all():
        return values
    return values[torch.from_numpy(index).to(values.device)]


def runs(index: Int[np.ndarray, " place"]) -> Iterator[tuple[slice, slice]]:
    """An index as slices: places, and the values that stand there, one each or one for all; negative ones left out."""
    step = np.diff(index)
    # A run goes on while its step stays the same, 0 or 1.
    start = 0
    while start < len(index):
        end = start + 1
        if index[start] >= 0 and end < len(index) and step[start] in (0, 1):
            while end < len(index) and step[end - 1] == step[start]:
                end += 1
        if index[start] >= 0:
            one = int(index[start])
            yield slice(start, end), slice(one, one + (1 if end - start == 1 or step[start] == 0 else end - start))
        start = end
