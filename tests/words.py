"""A tokenizer for tests that can be read at a glance, and tasks that draw from it."""

import re
from collections.abc import Callable
from random import Random

from circuitlab import Example, Task
from circuitlab.data.encoded import Encoded

LONGEST = 6


class Words:
    """Words with their leading space, and marks; words of more than six letters fall into pieces of four."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {"<bos>": 0}
        self.calls = 0

    def encode(self, text: str) -> Encoded:
        self.calls += 1
        pieces, offsets = ["<bos>"], [(0, 0)]
        for match in re.finditer(r" ?\w+|\s|[^\w\s]", text):
            word, start = match[0], match.start()
            step = len(word) if len(word.strip()) <= LONGEST else 4
            for i in range(0, len(word), step):
                pieces.append(word[i : i + step])
                offsets.append((start + i, start + min(len(word), i + step)))
        ids = tuple(self.vocabulary.setdefault(piece, len(self.vocabulary)) for piece in pieces)
        return Encoded(ids, tuple(offsets), tuple(pieces))


def task_of(draw: Callable[[Random], Example], **settings: object) -> Task:
    return Task(name="test", version="1", summary="A test.", draw=draw, **settings)


def numbered(rng: Random, below: int = 10**9) -> Example:
    """One of many examples, all of which can be served; no two share a text."""
    number = rng.randrange(below)
    return Example(
        f"case {number % 1000} of {number // 1000} .", f"case {number % 1000} of {number // 1000} ;", " Yes", " no"
    )
