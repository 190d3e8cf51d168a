"""The state of a long job in a file, so that a job that was stopped goes on from there and gives the same numbers.

One record (`circuitlab.outputs.records`) for all jobs: which job, a digest of everything that its numbers depend on,
and what it keeps. The file of another job is refused, never overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuitlab.errors import FormatError, RunError
from circuitlab.files import parsing
from circuitlab.outputs.records import load_record, save_record

SCHEMA, FILE = "circuitlab.state/1", "file to resume from"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What a job keeps.

    Attributes:
        job: What is done, such as "sweep".
        key: Digest of everything that the numbers depend on.
        numbers: Whole numbers by name.
        arrays: Arrays by name.
    """

    job: str
    key: str
    numbers: Mapping[str, int]
    arrays: Mapping[str, np.ndarray]


def save_state(path: Path, state: State) -> None:
    """Write the state of a job, whole or not at all.

    Raises:
        FileError: The operating system refused.
    """
    save_record(path, state, SCHEMA, FILE)


def resume(path: str | Path, job: str, key: str | None, take: Callable[[State], object] = lambda state: None) -> None:
    """Take over the state that a file keeps; a file that is not there yet is fine.

    Args:
        path: The file.
        job: What is done, such as "sweep".
        key: Digest of everything that the numbers depend on; None to check the kind of job only.
        take: Takes the state over; whatever it raises means that the file is damaged.

    Raises:
        FileError: It cannot be read.
        RunError: It is of another job, damaged, or no such file.
    """
    if not os.path.lexists(path):
        return
    try:
        state = load_record(Path(path), State, (SCHEMA,), FILE)
        if state.job != job or key not in (None, state.key):
            raise RunError(
                f"{str(path)!r} keeps another {job} (other model, prompts, sites or settings). Give another path, or "
                "remove the file."
            )
        with parsing(f"{FILE} {str(path)!r}"):
            take(state)
    except FormatError as error:
        why = str(error).removeprefix(f"{FILE} {str(path)!r} ").removesuffix(" Write it again.").rstrip(". ")
        raise RunError(
            f"{str(path)!r} cannot be read as the rest of a {job}: it {why}. Name another file, or remove it if a "
            f"{job} wrote it."
        ) from error
