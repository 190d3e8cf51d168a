"""Values of a node that several circuits have in common: the distinct ones, and by circuit which of them it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """What a node reads or computes in several circuits: the distinct values, and by circuit which of them it has."""

    values: Float[Tensor, "variant batch token *_"]
    of: Int[np.ndarray, " circuit"]

    def at(self, circuits: Int[np.ndarray, " chosen"]) -> Float[Tensor, "_ batch token *_"]:
        """The values of chosen circuits; one where all have the same, and no copy where they are all in order.

        Returns:
            Values `[circuit or 1, batch, token, ...]`.
        """
        index = self.of[circuits]
        if (index == index[0]).all():
            return self.values[index[0]][None]
        if len(index) == len(self.values) and (index == np.arange(len(index))).all():
            return self.values
        return self.values[torch.from_numpy(index).to(self.values.device)]


def distinct(keys: Shaped[np.ndarray, "circuit _"]) -> tuple[Int[np.ndarray, " circuit"], Int[np.ndarray, " variant"]]:
    """Number equal rows alike, in the order in which they first appear.

    Returns:
        The number of each row, and where each number is first.

    Example:
        >>> distinct(np.array([[7], [5], [7]]))
        (array([0, 1, 0]), array([0, 1]))
    """
    numbers = dict[bytes, int]()
    of = [numbers.setdefault(row.tobytes(), len(numbers)) for row in keys]
    return np.array(of), np.array([of.index(number) for number in range(len(numbers))])


def slices(index: Int[np.ndarray, " variant"]) -> Iterator[tuple[slice, slice | None]]:
    """Split an index into slices that count up by one or repeat one number.

    Args:
        index: Numbers of values, -1 for none.

    Yields:
        A slice of variants, and the slice of values that it takes: as many, or one for all; None where it takes none.

    Example:
        >>> list(slices(np.array([-1, 0, 1])))
        [(slice(0, 1, None), None), (slice(1, 3, None), slice(0, 2, None))]
    """
    start, steps = 0, np.diff(index, append=-2)
    while start < len(index):
        step, end = steps[start] if index[start] >= 0 else 0, start + 1
        while step in (0, 1) and end < len(index) and steps[end - 1] == step:
            end += 1
        first = int(index[start])
        yield slice(start, end), None if first < 0 else slice(first, int(index[end - 1]) + 1)
        start = end
