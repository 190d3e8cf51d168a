"""Reserve a name before the work, so that of two processes that write there one stops at once.

The reservation of `x` is the folder `.x.part` next to it, made in one step, in which the result is prepared; a lock
file in it names the process and shows whether it still runs. The result takes the name in one step. After a kill either
the old result or the new one has the name; `.x.part`, and `.x.old` for what was being replaced, may be left over. The
next process that writes there reports them, and removes them if it may replace.

`reserved_file` and `reserved_tables` reserve single files and folders of files, never over something that is there
unless the user allows it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from circuitlab.errors import OutputExistsError
from circuitlab.outputs.lock import LOCK, hold, holder_of, named, open_lock, seems_alive, sign
from circuitlab.outputs.paths import cannot_write, check_path
from circuitlab.outputs.whole import rename, replace_folder

# A process that made the folder and has not signed yet is given this long.
_PATIENCE, _STEP = 1.0, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be replaced.

    Attributes:
        force: Whether the user allowed it.
        check: Raises `OutputExistsError` for something that is in the way and may not be replaced.
        is_ours: Whether a folder without a lock was made by this program; None where nothing is ever exchanged, so that
            no such folder is left.
        remove: Removes a folder that was replaced or left over, but nothing that this program did not write.
    """

    force: bool
    check: Callable[[Path, bool], None]
    is_ours: Callable[[Path], bool] | None = None
    remove: Callable[[Path], None] = shutil.rmtree


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A name that is reserved.

    Attributes:
        path: The name.
        part: The folder in which the result is prepared.
        rules: What may be replaced.
    """

    path: Path
    part: Path
    rules: Rules

    def move_into_place(self) -> None:
        """Give the prepared folder the name; what had it is replaced.

        Raises:
            OutputExistsError: Something that may not be replaced got the name meanwhile; the result stays in `part`.
        """
        (self.part / LOCK).unlink(missing_ok=True)
        try:
            self.rules.check(self.path, self.rules.force)
        except OutputExistsError as error:
            raise _ResultKeptError(f"{error} The new result is kept in {str(self.part)!r}.") from error
        try:
            replaced = replace_folder(self.part, self.path, old := beside(self.path, ".old"))
        except OSError as error:
            raise _ResultKeptError(
                f"{cannot_write(self.path, error)} The new result is kept in {str(self.part)!r}."
            ) from error
        if replaced:
            self.rules.remove(old)


class _ResultKeptError(OutputExistsError):
    """The result is whole and could not get its name; it is not thrown away."""


def beside(path: Path, kind: str) -> Path:
    """The name of what is prepared (`.part`) or replaced (`.old`) for a path.

    Returns:
        A path in the same folder.
    """
    return path.with_name(f".{path.name}{kind}")


@contextmanager
def reserved(
    out: str | Path, rules: Rules, *, what: str = "output folder", option: str = "--out"
) -> Iterator[Reserved]:
    """Reserve a name for as long as the block runs.

    The reservation goes away however the block ends; what was prepared and not moved into place goes with it.

    Args:
        out: The name.
        rules: What may be replaced.
        what: How messages call it.
        option: The option that messages name.

    Raises:
        ConfigError: Nothing of this name can be made (`FileError` if the operating system refuses).
        OutputExistsError: The name is taken, another process is writing there, or a killed one left something; with
            `rules.force` only what may not be replaced is refused.
    """
    path = check_path(out, what, option)
    start = f"{what} {str(out)!r}"
    _restore(path, rules)
    _check(path, rules, option)
    path = path.absolute()  # what runs meanwhile may change the working folder
    part, made = beside(path, ".part"), _make_parents(path)
    try:
        descriptor = _claim(part, rules, start, option)
        prepared = os.stat(part)
        try:
            _check(path, rules, option)  # another process may have finished since
            if rules.is_ours is not None and os.path.lexists(old := beside(path, ".old")):
                rules.remove(old)
            yield Reserved(path=path, part=part, rules=rules)
        except _ResultKeptError:
            raise
        except BaseException:
            _discard(part, prepared)
            raise
        else:
            _discard(part, prepared)
        finally:
            os.close(descriptor)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # unless something is in it


def _discard(part: Path, prepared: os.stat_result) -> None:
    """Remove what was prepared, unless it has its name by now and something else is called `part`."""
    with suppress(OSError):
        if os.path.samestat(os.stat(part, follow_symlinks=False), prepared):
            shutil.rmtree(part, ignore_errors=True)


def _check(path: Path, rules: Rules, option: str) -> None:
    """Refuse a name that is taken; what a killed process left of it is named."""
    try:
        rules.check(path, rules.force)
    except OutputExistsError as error:
        left = [each for kind in (".part", ".old") if _was_left(each := beside(path, kind), rules)]
        if not left or rules.force:
            raise
        names = " and ".join(repr(str(each)) for each in left)
        raise OutputExistsError(f"{error} (A run that was killed left {names}; --force removes that too.)") from error
    old = beside(path, ".old")
    if rules.is_ours is None or not os.path.lexists(old):
        return
    if not _was_left(old, rules):
        raise OutputExistsError(f"{str(old)!r} is in the way: {path.name!r} is replaced through it. Move it away.")
    if not rules.force:
        raise OutputExistsError(
            f"{str(old)!r} was left by a run that was killed. Add --force to remove it, or name another with {option}."
        )


def _was_left(folder: Path, rules: Rules) -> bool:
    """Whether a killed process of this program left a folder."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        descriptor = open_lock(folder, new=False)
    except OSError:
        return not any(folder.iterdir()) or (rules.is_ours is not None and rules.is_ours(folder))
    try:
        return hold(descriptor) is not False
    finally:
        os.close(descriptor)


def _restore(path: Path, rules: Rules) -> None:
    """Give the old result its name again, where a kill between two renames left the name without one."""
    old = beside(path, ".old")
    if not os.path.lexists(path) and rules.is_ours is not None and old.is_dir() and rules.is_ours(old):
        with suppress(OSError):
            rename(old, path)


def _make_parents(path: Path) -> list[Path]:
    """Make the folders above a path; those that were made, the lowest first."""
    made: list[Path] = []
    try:
        missing = [each for each in path.absolute().parents if not each.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):
                folder.mkdir()
                made.insert(0, folder)
    except OSError as error:
        for folder in made:
            folder.rmdir()
        raise cannot_write(path, error) from error
    return made


def _claim(part: Path, rules: Rules, start: str, option: str) -> int:
    """Make the folder of a reservation, or take over one whose process is gone; its lock file, open and locked."""
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            part.mkdir()
        except FileExistsError:
            pass
        except OSError as error:
            raise cannot_write(part, error) from error
        else:
            try:
                return _signed(open_lock(part, new=True))
            except OSError as error:
                shutil.rmtree(part, ignore_errors=True)
                raise cannot_write(part, error) from error
        descriptor = _take_over(part, rules, start, option, last=time.monotonic() > ends)
        if descriptor is not None:
            return descriptor
        time.sleep(_STEP)


def _take_over(part: Path, rules: Rules, start: str, option: str, *, last: bool) -> int | None:
    """The lock of a reservation that was left; None to try again, while another process starts or ends.

    Raises:
        OutputExistsError: It is in use, or was left and `rules.force` is not given, or is none of ours.
    """
    if part.is_symlink() or not part.is_dir():
        if not os.path.lexists(part):
            return None
        raise OutputExistsError(f"{start}: {str(part)!r} is in the way. Move it away, or name another with {option}.")
    try:
        descriptor = open_lock(part, new=False)
    except FileNotFoundError:
        if last:
            _clear_unlocked(part, rules, start, option)
        return None
    except OSError as error:
        raise cannot_write(part, error) from error
    try:
        held, holder = hold(descriptor), holder_of(descriptor)
        if held is False or (held is None and seems_alive(holder)):
            raise OutputExistsError(
                f"{start} is being written by another run ({named(holder)}). Wait for it, or name another with "
                f"{option}. If there is no such process, remove {str(part)!r}."
            )
        if not _same(part / LOCK, descriptor) or (not holder and not last):
            os.close(descriptor)
            return None
        _allow(part, rules, start, option, f" ({named(holder)})" if holder else "")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    _empty(part)
    return _signed(descriptor)


def _clear_unlocked(part: Path, rules: Rules, start: str, option: str) -> None:
    """Remove a folder without a lock file: an empty one, or one that was about to get its name or was replaced."""
    if any(part.iterdir()) and not (rules.is_ours is not None and rules.is_ours(part)):
        raise OutputExistsError(
            f"{start}: {str(part)!r} is in the way and was not made by this program. Move it away, or name another "
            f"with {option}."
        )
    _allow(part, rules, start, option, "")
    with suppress(FileNotFoundError):
        rules.remove(part)


def _allow(part: Path, rules: Rules, start: str, option: str, holder: str) -> None:
    if not rules.force:
        raise OutputExistsError(
            f"{start}: {str(part)!r} was left by a run that was killed{holder}. Add --force to remove it and begin "
            f"anew, or name another with {option}."
        )


def _signed(descriptor: int) -> int:
    hold(descriptor, wait=True)
    sign(descriptor)
    return descriptor


def _empty(part: Path) -> None:
    for each in part.iterdir():
        if each.name == LOCK:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink()


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False


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
        place.move_into_place()
        return
    place.rules.check(place.path, place.rules.force)
    for name in files:
        rename(place.part / name, place.path / name)
