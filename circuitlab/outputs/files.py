"""Single files and folders of files as outputs: never over something that is there unless the user allows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from circuitlab.errors import OutputExistsError
from circuitlab.outputs.reserve import Reserved, Rules, reserved
from circuitlab.outputs.whole import rename


def reserved_file(out: str | Path, *, force: bool, option: str = "--out") -> AbstractContextManager[Reserved]:
    """Reserve the name of a file for as long as the block runs.

    Returns:
        A context manager of the reservation.

    Raises:
        ConfigError: No file of this name can be made.
        OutputExistsError: It exists and `force` is not given, or is no regular file, or another process writes it.
    """

    def check(path: Path, force: bool) -> None:
        if os.path.lexists(path) and not path.is_file():
            raise OutputExistsError(f"{str(path)!r} exists and is no regular file. Name another with {option}.")
        if path.exists() and not force:
            raise OutputExistsError(
                f"file {str(path)!r} exists. Name another with {option}, or replace it with --force."
            )

    return reserved(out, Rules(force=force, check=check), what="output file", option=option)


def reserved_tables(out: str | Path, *, force: bool) -> AbstractContextManager[Reserved]:
    """Reserve the name of a folder of tables and pictures for as long as the block runs.

    With `force` files of the same names are replaced in a folder that is there; others stay.

    Returns:
        A context manager of the reservation.

    Raises:
        ConfigError: No folder of this name can be made.
        OutputExistsError: It exists and `force` is not given, or is a file, or another process writes it.
    """

    def check(path: Path, force: bool) -> None:
        if os.path.lexists(path) and not path.is_dir():
            raise OutputExistsError(f"output {str(path)!r} is a file; tables and heatmaps need a folder. Name another.")
        if path.exists() and not force:
            raise OutputExistsError(f"output folder {str(path)!r} exists. Name another with --out, or add --force.")

    return reserved(out, Rules(force=force, check=check))


def put_file(place: Reserved, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the reserved place and give it its own.

    Args:
        place: What `reserved_file` gave.
        write: Writes the file at the path it is given, which has the suffix of the file.
    """
    made = place.part / place.path.name
    write(made)
    place.rules.check(place.path, place.rules.force)
    rename(made, place.path)


def put_tables(place: Reserved, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files into the reserved folder; a new folder gets its name when all of them are there.

    Args:
        place: What `reserved_tables` gave.
        files: Name of each file, and what writes it at the path it is given.
    """
    for name, write in files.items():
        write(place.part / name)
    if not place.path.exists():
        place.put_in_place()
        return
    place.rules.check(place.path, place.rules.force)
    for name in files:
        rename(place.part / name, place.path / name)
