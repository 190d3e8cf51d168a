"""Write whole or not at all: the only module that gives prepared files and folders their names.

What is written has a name of its own until it is complete; a kill leaves either the old content or the new one under
the name that users read.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from circuitlab.errors import CircuitLabError, FileError

_HERE, _EXCHANGE, _SWAP = -100, 2, 2  # Linux: AT_FDCWD, RENAME_EXCHANGE; macOS: RENAME_SWAP


@contextmanager
def writing(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """What the operating system refuses while a file is written (no permission, no space), as a `FileError`.

    Args:
        path: What is written.
        what: What it is in messages, such as "circuit file".

    Raises:
        FileError: The operating system refused.
    """
    try:
        yield
    except CircuitLabError:
        raise
    except OSError as error:
        raise FileError(
            f"{what} {str(path)!r} cannot be written: {error.strerror or error}. Name a place that may be written and "
            "has space."
        ) from error


@contextmanager
def whole_file(path: Path, what: str) -> Iterator[Path]:
    """A new empty file beside `path` that takes its name when the block succeeds, and is gone when it does not.

    Its folder is made. What had the name is replaced; where that was a symbolic link, the link is, not its target.

    Args:
        path: The file.
        what: What it is in messages, such as "circuit file".

    Raises:
        FileError: The operating system refused: no permission, no space, or a folder of this name.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Exclusive: an existing file or link is not written through.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            rename(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_bytes(path: Path, content: bytes, what: str) -> None:
    """Write a file whole or not at all; see `whole_file`.

    Raises:
        FileError: The operating system refused.
    """
    with whole_file(path, what) as temporary:
        temporary.write_bytes(content)


def rename(new: Path, path: Path) -> None:
    """Give a prepared file or folder its name. A file that had the name is replaced, a folder is not.

    Raises:
        OSError: The operating system refused.
    """
    os.replace(new, path)


def replace_folder(new: Path, path: Path, old: Path) -> bool:
    """Give a prepared folder its name; a folder that had the name is called `old` afterwards.

    Returns:
        Whether there was one.

    Raises:
        OSError: The operating system refused; the folder that had the name has it again.
    """
    if not os.path.lexists(path):
        rename(new, path)
        return False
    if exchange(new, path):
        rename(new, old)
        return True
    rename(path, old)
    try:
        rename(new, path)
    except BaseException:
        rename(old, path)
        raise
    return True


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths so that no moment passes in which one of them is missing.

    Returns:
        Whether it was done. False, with nothing changed, where system or file system cannot.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if hasattr(system, "renameat2"):
            return system.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0
        if hasattr(system, "renamex_np"):
            return system.renamex_np(first, second, _SWAP) == 0
    except (OSError, TypeError):  # Windows has no such library
        pass
    return False


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is gone, with all that is in it, when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
