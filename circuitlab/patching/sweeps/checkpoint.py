"""Finished parts of a long sweep in a file, so that an interrupted one goes on from there. It goes when all is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from circuitlab.outputs.records import State, resume, save_state

JOB, DONE = "sweep", "finished parts"


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A file of finished parts.

    Attributes:
        path: Where it is; None keeps nothing.
        key: Digest of the sweep.
        tables: The arrays being filled, by name; a part is a set of their cells.
        budget: Bytes a pack may take: packs of another size would round differently.
        done: Numbers of the finished parts.
    """

    path: Path | None
    key: str
    tables: Mapping[str, np.ndarray]
    budget: int
    done: set[int] = field(default_factory=set)

    def load(self) -> None:
        """Take over what an earlier run finished.

        Raises:
            RunError: The file is of another sweep, or damaged.
        """
        if self.path is not None:
            resume(self.path, JOB, self.key, self._take)

    def _take(self, state: State) -> None:
        done, budget = state.arrays[DONE], state.numbers["budget"]
        for name, table in self.tables.items():
            kept = state.arrays[name]
            if (kept.shape, kept.dtype) != (table.shape, table.dtype):
                raise ValueError(f"table {name} is {kept.dtype} {kept.shape}")
        if budget < 1 or done.dtype.kind != "i":
            raise ValueError(f"budget {budget} or the list of finished parts is no whole number")
        for name, table in self.tables.items():
            table[...] = state.arrays[name]
        self.done, self.budget = set(done.ravel().tolist()), budget

    def finish(self, part: int) -> None:
        """Take note of a finished part, on disk."""
        self.done.add(part)
        if self.path is not None:
            arrays = {**self.tables, DONE: np.array(sorted(self.done))}
            save_state(self.path, State(job=JOB, key=self.key, numbers={"budget": self.budget}, arrays=arrays))

    def remove(self) -> None:
        """The sweep is done; nothing is left to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
