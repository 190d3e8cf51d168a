"""Paths that the user gives for output: whether something can be written there, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

from circuitlab.errors import ConfigError, FileError, OutputExistsError, WrongTypeError

# What is put around a name while something is written under it: ".", the name, ".", eight characters, ".part".
_ADDED = 16
_LONGEST = 255  # bytes of a name on the usual file systems


def at_home(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder, as a shell does where it sees it (in `--out=~/x` it does not).

    Returns:
        The path.
    """
    return Path(os.path.expanduser(path))


def check_path(path: str | Path, what: str = "output folder", option: str = "--out") -> Path:
    """The path with `~` replaced, if a file or folder of this name can be made. Nothing is made.

    Args:
        path: What the user gave.
        what: How messages call it, such as "output folder".
        option: The option that messages name.

    Returns:
        The path.

    Raises:
        WrongTypeError: It is no path.
        ConfigError: The path is empty, `.`, `..` or the root, is spelt with backslashes or control characters, is too
            long, or has a parent that is no folder.
        OutputExistsError: It is a symbolic link.
    """
    if not isinstance(path, str | os.PathLike):
        raise WrongTypeError(f"{what} is {path!r}; it must be a path.")
    given = os.fspath(path)
    if not isinstance(given, str):
        raise WrongTypeError(f"{what} is {given!r}; it must be text.")
    start, way_out = f"{what} {given[:120]!r}", f"Name another with {option}."
    if not given:
        raise ConfigError(f"{what} '' has no name. {way_out}")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in given):
        raise ConfigError(f"{start} has a control character in its name. {way_out}")
    if os.sep == "/" and "\\" in given:
        raise ConfigError(f"{start} has a backslash in its name; folders are separated by '/' here. {way_out}")
    try:
        given.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{start} is not UTF-8 text. {way_out}") from None
    full = at_home(given)
    if full.name in ("", "..") or Path(os.path.normpath(full)).name != full.name:
        raise ConfigError(f"{start} is a folder that exists, not the name of a new one. {way_out}")
    if len(os.fsencode(full.name)) > _LONGEST - _ADDED:
        raise ConfigError(f"{start} is too long: at most {_LONGEST - _ADDED} bytes. {way_out}")
    try:
        link = os.readlink(full) if full.is_symlink() else None
        above = next((each for each in full.absolute().parents if os.path.lexists(each)), None)
        blocked = above is not None and not above.is_dir()
    except OSError as error:
        raise FileError(f"{start} cannot be made: {error.strerror or error}. {way_out}") from error
    if link is not None:
        raise OutputExistsError(
            f"{start} is a symbolic link (to {link!r}), which is not written through. Name what it points to, or "
            f"another path, with {option}."
        )
    if blocked:
        kind = "a broken symbolic link" if above and above.is_symlink() else "a file"
        raise FileError(f"{start} cannot be made: {str(above)!r} is {kind}. {way_out}")
    return full


def check_state_file(path: str | Path, option: str = "--resume") -> Path:
    """The path of a file in which a long job keeps its state, if it can be read and written again and again.

    Returns:
        The path.

    Raises:
        ConfigError: See `check_path`; a folder has this name, or the folder above cannot be written (`FileError`).
    """
    full = check_path(path, "state file", option)
    if full.exists() and not full.is_file():
        raise FileError(f"state file {str(path)!r} is no regular file. Name another with {option}.")
    above = next(each for each in full.absolute().parents if each.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise FileError(f"state file {str(path)!r} cannot be written: no permission in {str(above)!r}.")
    return full


def cannot_write(path: Path, error: OSError) -> FileError:
    """The error for a path that the operating system does not let us write.

    Returns:
        The error, to be raised.
    """
    where = f" ({str(error.filename)!r})" if error.filename else ""
    return FileError(f"{str(path)!r} cannot be written: {error.strerror or error}{where}. Name another place.")
