"""How long work tells how far it is: a callback, silent by default."""

from typing import Protocol


class Progress(Protocol):
    """Called with the step's name, how much of it is done, and of how much."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take note."""
        ...


def silent(step: str, done: int, total: int) -> None:
    """Take no note."""
