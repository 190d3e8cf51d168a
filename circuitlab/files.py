"""Read files that users name: regular files of a bounded size, text, strict JSON. `outputs/` writes them.

Every reader of the library goes through here, so that a device, a pipe, an archive that unpacks to gigabytes or a
deeply nested object is refused with one message, before it takes time or memory. Text may have a byte-order mark.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from circuitlab.errors import CircuitLabError, FileError, FormatError, MissingFileError, RunError, in_one_line

MOST_TEXT = 256 * 2**20  # bytes of a text or JSON file, unpacked
MOST_LEVELS = 64  # of nested JSON lists and objects
# Weights hardly compress. An archive may unpack to this multiple of its size, and small ones to a little more.
MOST_RATIO, SMALL = 8, 64 * 2**20
_CHUNK = 2**20
_MARKS = {  # longest first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_file(path: Path, what: str, *, most: int | None = None, hint: str = "") -> int:
    """Refuse what is not a regular file of at most `most` bytes.

    Args:
        path: The file.
        what: What it is in messages, such as "circuit file".
        most: Largest size in bytes; unbounded by default.
        hint: One more sentence where the file does not exist.

    Returns:
        Its size in bytes.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is a folder, a device or a pipe, is larger than `most`, or cannot be looked up.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{what} {str(path)!r} does not exist. {hint or 'Check the path.'}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FileError(_unreadable(what, path, error)) from error
    if stat.S_ISDIR(found.st_mode):
        raise FileError(f"{what} {str(path)!r} is a folder; a file is needed. {hint}".rstrip())
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{what} {str(path)!r} is a device or pipe; only regular files are read. Save it to a file.")
    if most is not None and found.st_size > most:
        raise FileError(f"{what} {str(path)!r} has {found.st_size:,} bytes; at most {most:,} are read. Split it.")
    return found.st_size


@contextmanager
def open_file(path: Path, what: str, *, most: int | None = None, hint: str = "") -> Iterator[BufferedReader]:
    """A regular file, opened for reading bytes; see `check_file`.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, is too large, or cannot be read.
    """
    check_file(path, what, most=most, hint=hint)
    try:
        with path.open("rb") as file:
            yield file
    except CircuitLabError:
        raise
    except OSError as error:
        raise FileError(_unreadable(what, path, error)) from error


def read_bytes(path: Path, what: str, *, most: int = MOST_TEXT, hint: str = "") -> bytes:
    """The content of a regular file of at most `most` bytes; of a `.gz` file, what it unpacks to.

    Returns:
        The content.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, is too large, or cannot be read.
        FormatError: It is named `.gz` and is damaged.
    """
    with open_file(path, what, most=most, hint=hint) as file:
        if path.suffix != ".gz":
            return _bounded(file, path, what, most)
        try:
            return _bounded(gzip.GzipFile(fileobj=file), path, what, most)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{what} {str(path)!r} is no gzip file: {error}. Write it again.") from error


def _bounded(file: BufferedIOBase, path: Path, what: str, most: int) -> bytes:
    found: list[bytes] = []
    size = 0
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        if size > most:
            raise FileError(f"{what} {str(path)!r} holds more than {most:,} bytes, the most that is read. Split it.")
        found.append(chunk)
    return b"".join(found)


def read_text(path: Path, what: str, *, most: int = MOST_TEXT, hint: str = "") -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is left out.

    Returns:
        The text.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, is too large, or cannot be read.
        FormatError: It is not text in one of these encodings.
    """
    raw = read_bytes(path, what, most=most, hint=hint)
    try:
        return decoded(raw)
    except UnicodeDecodeError as error:
        raise FormatError(f"{what} {str(path)!r} is not UTF-8 text: {error.reason}. Save it as UTF-8.") from error


def decoded(raw: bytes) -> str:
    """Bytes as text: UTF-8, or the encoding of their byte-order mark.

    Returns:
        The text.

    Example:
        >>> decoded(codecs.BOM_UTF8 + b"a"), decoded("a".encode("utf-16"))
        ('a', 'a')
    """
    return raw.decode(encoding_of(raw))


def encoding_of(start: bytes) -> str:
    """The encoding that a byte-order mark at the start of a file declares; UTF-8 without one.

    Returns:
        Name of a codec.
    """
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def read_json(
    path: Path, what: str, *, most: int = MOST_TEXT, hint: str = "", expected: str = "Write it again."
) -> Any:
    """The JSON value of a file.

    Returns:
        The value.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, is too large, or cannot be read.
        FormatError: See `parse_json`.
    """
    return parse_json(read_text(path, what, most=most, hint=hint), f"{what} {str(path)!r}", expected)


def parse_json(text: str, where: str, expected: str = "Write it again.") -> Any:
    """A JSON value: no key twice in an object, no deep nesting, no characters that are halves of others.

    Python's `NaN`, `Infinity` and `-Infinity` are read as numbers.

    Args:
        text: The JSON.
        where: Its file in messages, such as "circuit file 'a.json'".
        expected: What the file should be, for the message.

    Returns:
        The value.

    Raises:
        FormatError: It is no such JSON.

    Example:
        >>> parse_json('{"a": [1, 2]}', "file 'a.json'")
        {'a': [1, 2]}
    """
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    # A ValueError that is no JSONDecodeError is a number of more digits than Python reads, or a key given twice.
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"{where} is not valid JSON: {in_one_line(error, 160).rstrip('. ')}. {expected}") from error
    level = [found]
    for _ in range(MOST_LEVELS):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            break
    else:
        raise FormatError(f"{where} is nested more than {MOST_LEVELS} levels deep, the most that is read.")
    if re.search(r"\\u[dD][89a-fA-F]", text) and re.search("[\ud800-\udfff]", json.dumps(found, ensure_ascii=False)):
        raise FormatError(f"{where} holds a lone surrogate (\\ud800 to \\udfff), which is no character.")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"an object has the key {twice[:80]!r} twice")
    return found


def check_archive(path: Path, what: str) -> None:
    """Refuse a zip archive that unpacks to far more than its size. Other files pass: their readers refuse them.

    Raises:
        MissingFileError: There is no such file.
        FileError: It is no regular file, or unpacks to more than 8 times its size and 64 MiB.
    """
    size = check_file(path, what)
    most = SMALL + MOST_RATIO * size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return
    except OSError as error:
        raise FileError(_unreadable(what, path, error)) from error
    if unpacked > most:
        raise FileError(
            f"{what} {str(path)!r} has {size:,} bytes and unpacks to {unpacked:,}; at most {most:,} are unpacked "
            "(8 times the size, and 64 MiB). Save it without compression."
        )


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Whatever a parser raises on a damaged file, as a `FormatError` that names the file.

    Args:
        where: The file in messages, such as "circuit file 'a.pt'".

    Raises:
        FormatError: Something was raised inside that is no `CircuitLabError`.
    """
    try:
        yield
    except CircuitLabError:
        raise
    except Exception as error:
        raise FormatError(
            f"{where} is damaged or of another format: {in_one_line(error, 160).rstrip('. ')}. Write it again."
        ) from error


def _unreadable(what: str, path: Path, error: Exception) -> str:
    return f"{what} {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}. Check the path."


def path_from_here(path: str | Path) -> str:
    """How a path is given on a command line in this folder: relative to it where it lies inside, else absolute.

    Returns:
        The path.
    """
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    if not whole.is_relative_to(here):
        return str(whole)
    relative = str(whole.relative_to(here))
    return os.path.join(".", relative) if relative.startswith("-") else relative  # not read as an option


def file_inside(folder: Path, name: str) -> Path | None:
    """The path of a file that a run folder or its manifest names, if it is there.

    Args:
        folder: The run folder; it may be a symbolic link itself.
        name: A relative path with forward slashes, such as `sweeps/head_z.csv`.

    Returns:
        The path, or None where nothing has this name.

    Raises:
        RunError: The name leads out of the folder (absolute, `..`, or through a symbolic link), or names something that
            is no regular file.

    Example:
        >>> file_inside(Path("."), "no such file") is None
        True
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or PureWindowsPath(name).drive:
        raise RunError(f"run {str(folder)!r} names a file {name!r}; files of a run have paths inside its folder.")
    if ".." in pure.parts:
        raise RunError(f"run {str(folder)!r} names a file {name!r} outside its folder; such files are not read.")
    path = folder / pure
    try:
        there, linked = path.exists(), path.is_symlink()
        real, regular = path.resolve(), path.is_file()
        inside = real.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise RunError(f"{name[:80]!r} in the run folder {str(folder)!r} cannot be read: {error}.") from error
    if not there and not linked:
        return None
    if not inside:
        raise RunError(
            f"{name} in the run folder {str(folder)!r} is a symbolic link that leads out of the folder, to "
            f"{str(real)!r}; it is not followed. Put a copy of the file there."
        )
    if there and not regular:
        raise RunError(f"{name} in the run folder {str(folder)!r} is no regular file.")
    return path if there else None


def files_inside(folder: Path) -> dict[str, Path]:
    """Every file of a run folder by its name in it.

    Returns:
        Paths by name, sorted.

    Raises:
        RunError: A symbolic link leads out of the folder or to a folder, or something is no regular file.
    """
    found = dict[str, Path]()
    for where, folders, names in os.walk(folder):
        linked = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in (*names, *linked):
            inner = (Path(where) / name).relative_to(folder).as_posix()
            if (path := file_inside(folder, inner)) is not None:
                found[inner] = path
    return dict(sorted(found.items()))
