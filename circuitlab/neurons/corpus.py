"""Texts one after the other from a list, a file, a folder or an iterator, without holding more than one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path

from circuitlab.data.limits import clipped
from circuitlab.errors import ConfigError, FormatError, MissingFileError, WrongTypeError
from circuitlab.files import check_file, encoding_of, open_file, parse_json

SUFFIXES = (".txt", ".jsonl")  # what is read in a folder
_CHUNK = 2**16  # characters that are read at once
MOST_LINE = 2**26  # characters of a line of a .jsonl file


@dataclass(frozen=True, slots=True)
class CorpusText:
    """A text and where it is from: `file.txt:12` (the 12th text of the file), or its number in a list, from 0."""

    text: str
    where: str


def read_corpus(
    source: str | Path | Iterable[str], *, separator: str = "\n", field: str = "text", most: int = 10**6
) -> Iterator[CorpusText]:
    """The texts of a corpus, in order; blank ones are left out.

    Args:
        source: The path of a file or folder, or texts themselves (a list, a generator). A `.jsonl` file holds one JSON
            object a line, any other file text. Of a folder all `.txt` and `.jsonl` files are read, those of its folders
            too, sorted by path.
        separator: What separates the texts of a file that is not `.jsonl`: a line break by default, so that each
            line is a text; "" makes each file one text.
        field: Which entry of a JSON object is the text.
        most: Characters of a text that are kept; the rest of it is skipped.

    Returns:
        The texts, read one after the other as they are needed.

    Raises:
        ConfigError: The path does not exist or cannot be read, a folder has no such files, or something is no text.
        FormatError: A file is not UTF-8, or a line of it is not a JSON object with the field.
    """
    if not isinstance(source, str | Path):
        return _given(source, most)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise ConfigError(f"corpus folder {str(source)!r} has no file ending in {' or '.join(SUFFIXES)}.")
    else:
        files = [path]
        try:
            check_file(path, "corpus file")
        except MissingFileError as error:
            raise MissingFileError(
                f"corpus {clipped(str(source))} does not exist. Give a file, a folder, or the texts as a list."
            ) from error
    base = path if path.is_dir() else path.parent
    return (one for file in files for one in _in_file(file, file.relative_to(base).as_posix(), separator, field, most))


def check_corpus(source: str | Path, *, separator: str | None = None, field: str | None = None) -> None:
    """Refuse a file or folder that is missing, empty, or whose first text cannot be read, before anything runs.

    Args:
        source: A path; see `read_corpus`.
        separator: As in `read_corpus`; None where it was not given.
        field: As in `read_corpus`; None where it was not given.

    Raises:
        ConfigError: There is no such file or folder, or no text that is not blank; an argument would be ignored.
        FormatError: The first file is not UTF-8, or its first line is not a JSON object with the field.
    """
    texts = read_corpus(source, separator="\n" if separator is None else separator, field=field or "text")
    if not (path := Path(source).expanduser()).is_dir():
        of_objects = path.suffix == ".jsonl"
        if separator is not None and of_objects:
            raise ConfigError(
                f"separator (--separator) {separator!r} goes with text files, not {path.name!r}. Leave it out."
            )
        if field is not None and not of_objects:
            raise ConfigError(f"field (--field) {field!r} goes with .jsonl files, not {path.name!r}. Leave it out.")
    if next(iter(texts), None) is None:
        raise ConfigError(empty(source))


def empty(source: object) -> str:
    """The message about a corpus without a text.

    Returns:
        The message.
    """
    named = f" {clipped(str(source))}" if isinstance(source, str | Path) else ""
    return f"the corpus{named} is empty: it has no text that is not blank."


def _given(texts: Iterable[str], most: int) -> Iterator[CorpusText]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise WrongTypeError(f"text {number} of the corpus is a {type(text).__name__}, not a str.")
        if text.strip():
            yield CorpusText(text[:most], str(number))


def _in_file(file: Path, name: str, separator: str, field: str, most: int) -> Iterator[CorpusText]:
    try:
        with open_file(file, "corpus file") as raw:
            encoding = encoding_of(raw.read(4))
            raw.seek(0)
            stream = TextIOWrapper(raw, encoding=encoding)
            texts = _objects(stream, name, field) if file.suffix == ".jsonl" else _pieces(stream, separator, most)
            for number, text in enumerate(texts, start=1):
                if text.strip():
                    yield CorpusText(text[:most], f"{name}:{number}")
    except UnicodeDecodeError as error:
        raise FormatError(f"corpus file {str(file)!r} is not UTF-8 text: {error.reason}. Save it as UTF-8.") from error


def _objects(stream: TextIOWrapper, name: str, field: str) -> Iterator[str]:
    """The texts of a `.jsonl` file, empty for blank lines; no line may be too long to hold."""
    for number, line in enumerate(iter(partial(stream.readline, MOST_LINE + 1), ""), start=1):
        where = f"line {number} of corpus file {name!r}"
        if len(line) > MOST_LINE:
            raise FormatError(f"{where} has more than {MOST_LINE:,} characters. Split it.")
        found = parse_json(line, where) if line.strip() else {field: ""}
        text = found.get(field) if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise FormatError(f"{where} is not a JSON object with a text {field!r}.")
        yield text


def _pieces(stream: TextIOWrapper, separator: str, most: int) -> Iterator[str]:
    """The text between separators; of a piece longer than `most` only the beginning is kept in memory."""
    kept = ""
    while chunk := stream.read(_CHUNK):
        kept += chunk
        *whole, kept = kept.split(separator) if separator else [kept]
        yield from whole
        # The end is kept as well as the beginning: it may be the beginning of a separator.
        tail = max(0, len(separator) - 1)
        if len(kept) > most + tail:
            kept = kept[:most] + (kept[-tail:] if tail else "")
    yield kept
