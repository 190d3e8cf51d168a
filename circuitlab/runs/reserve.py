"""Reserve the name of a run folder: which files may be replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from circuitlab.errors import OutputExistsError
from circuitlab.outputs.reserve import Reserved, Rules, reserved
from circuitlab.runs.manifest import MANIFEST, REPORT, SCHEMA


def reserve_run(out: str | Path, force: bool) -> AbstractContextManager[Reserved]:
    """Reserve a run folder for as long as the block runs; nothing is left of it where the block does not finish.

    Args:
        out: The folder; `~` is the home folder.
        force: Replace a run folder, and remove what a killed run left.

    Returns:
        A context manager of the reservation.

    Raises:
        OutputExistsError: It exists and `force` is not given, or it is no run folder of ours, or holds files that its
            run did not write; another process is writing it; a killed run left something and `force` is not given.
        ConfigError: No folder of this name can be made.
    """
    rules = Rules(
        force=force, check=_check_free, is_ours=lambda folder: _written_by(folder) is not None, remove=_remove
    )
    return reserved(out, rules)


def _check_free(folder: Path, force: bool) -> None:
    """Refuse a name that is taken by something that may not be replaced."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise OutputExistsError(
            f"output folder {str(folder)!r} exists. Name another with --out, or replace it with --force."
        )
    if not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise OutputExistsError(
            f"output {str(folder)!r} is not a run folder ({MANIFEST} is not in it), so --force does not replace it. "
            "Name another with --out."
        )
    written = _written_by(folder)
    if written is None and any(folder.iterdir()):
        raise OutputExistsError(
            f"output {str(folder)!r} has a {MANIFEST} that is damaged or not of this program, so --force does not "
            "replace it. Name another with --out."
        )
    if foreign := _foreign(folder, written or frozenset()):
        raise _holds_foreign(folder, foreign)


def _holds_foreign(folder: Path, foreign: Sequence[str]) -> OutputExistsError:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    return OutputExistsError(
        f"run folder {str(folder)!r} holds files that its run did not write ({', '.join(map(repr, foreign[:3]))}{more})"
        ", which --force does not delete. Move them away, or name another folder with --out."
    )


def _written_by(folder: Path) -> frozenset[str] | None:
    """Names of the files that a run wrote into its folder; None without a manifest of this program."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            return None
        return frozenset({*manifest["files"], MANIFEST, REPORT})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _foreign(folder: Path, written: frozenset[str]) -> list[str]:
    """Files in a folder that are not among those written; links count as files and are not followed."""
    found = [
        (Path(where) / name).relative_to(folder).as_posix()
        for where, folders, names in os.walk(folder)
        for name in (*names, *(each for each in folders if (Path(where) / each).is_symlink()))
    ]
    return sorted(set(found) - written)


def _remove(folder: Path) -> None:
    """Remove a run folder, the manifest last, because it lists the run's files.

    Raises:
        OutputExistsError: It holds files that the run did not write; nothing is removed.
    """
    written = _written_by(folder) or frozenset()
    if foreign := _foreign(folder, written):
        raise _holds_foreign(folder, foreign)
    for where, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(where) != folder or name != MANIFEST:
                (Path(where) / name).unlink()
        for name in folders:
            (Path(where) / name).rmdir()
    (folder / MANIFEST).unlink(missing_ok=True)
    folder.rmdir()
