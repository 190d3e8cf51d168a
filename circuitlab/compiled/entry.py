"""What a compiled model is before it is compiled: its program, and how its prompts are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from circuitlab.compiled.program import Program
from circuitlab.summary import Summary

BOS = 0


@dataclass(frozen=True, slots=True, repr=False)
class Drawn(Summary):
    """One pair: tokens of both prompts, and the position whose next token is judged."""

    clean: list[int]
    corrupt: list[int]
    answer_at: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Entry(Summary):
    """A compiled model before it is compiled.

    Attributes:
        what: What it does, one line.
        program: Its description.
        draw: From the number of a pair and a generator to the pair; kinds of pairs alternate.
        redundant: Two paths carry the same value, and one suffices: no single edge of theirs has an effect.
        numeric: The output is a number x, not a word: the logits are x / 2 and -x / 2, their difference is x, and the
            clean prompt has the larger x.
    """

    what: str
    program: Program
    draw: Callable[[int, np.random.Generator], Drawn]
    redundant: bool = False
    numeric: bool = False


def letters(rng: np.random.Generator, n: int, below: int) -> list[int]:
    """Random words, from number 1 up to `below`, which is not included.

    Returns:
        Numbers of the words.
    """
    return rng.integers(1, below, n).tolist()


def another(value: int, among: range, rng: np.random.Generator) -> int:
    """A number of a range that is not this one.

    Returns:
        The number.
    """
    return int(rng.choice([other for other in among if other != value]))
