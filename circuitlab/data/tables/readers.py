"""Read files of rows: CSV, TSV, JSON lines, JSON and Parquet. Texts stay as they are, and every row knows its line."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlab.errors import FormatError, TableError
from circuitlab.files import MOST_TEXT, check_file, parse_json, parsing, read_text

DELIMITERS = (",", "\t", ";", "|")
LINES, ROWS = "line", "row"
MOST_ROWS = 1_000_000
# What Excel writes and reads as the first line of a file with another delimiter than the locale's.
_SEP = re.compile(r"sep=(.)(?:\r\n|\r|\n)", re.IGNORECASE)
# Suffixes of files that hold tables; text files may also be compressed (`.csv.gz`).
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """Rows as they are in a file.

    Attributes:
        source: The file, as it was given.
        columns: Names of the columns.
        rows: Each row as values by column; a cell that a row lacks is not in it.
        numbers: The line of each row in the file, or its place among the rows.
        counted: What `numbers` count: "line" or "row".
        split: The split of a data set that all of them belong to; empty if there is none.
        odd: Lines whose number of cells is not that of the header, with this number.
    """

    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    numbers: tuple[int, ...]
    counted: str = LINES
    split: str = ""
    odd: Mapping[int, int]


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`.

    Returns:
        The suffix in lower case.
    """
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_file(path: Path) -> tuple[RawTable, ...]:
    """The rows of a file; of a JSON object whose keys are splits, one table for each.

    Args:
        path: A file with one of the `SUFFIXES`.

    Returns:
        The tables, in the order of the file.

    Raises:
        TableError: It has no rows, no header, or a column twice.
        FileError: It cannot be read.
        FormatError: It is not what its suffix says.
    """
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return (_parquet(path),)
    text = read_text(path, "table")
    if not text.strip():
        raise TableError(f"table {str(path)!r} is empty. Give a file with a header and rows.")
    if suffix in (".csv", ".tsv"):
        return (_separated(text, path, "\t" if suffix == ".tsv" else None),)
    if suffix == ".json" and not _is_lines(text):
        return _json(text, path)
    return (_json_lines(text, path),)


def of_records(
    source: str, records: Sequence[Any], *, numbers: Sequence[int] = (), counted: str = ROWS, split: str = ""
) -> RawTable:
    """A table of rows that are mappings.

    Args:
        source: What holds them, for messages.
        records: The rows.
        numbers: Where each is in its file; by default counted from 1.
        counted: What the numbers count.
        split: The split that they belong to.

    Returns:
        The table.

    Raises:
        TableError: There is no row, or one is no mapping of texts.
    """
    if not records:
        raise TableError(f"{source} has no rows. Give at least two pairs.")
    if len(records) > MOST_ROWS:
        raise TableError(f"{source} has {len(records):,} rows; at most {MOST_ROWS:,} are read. Split it.")
    places = tuple(numbers) or tuple(range(1, len(records) + 1))
    columns = dict[str, None]()
    for number, record in zip(places, records, strict=True):
        if not isinstance(record, Mapping) or not all(isinstance(name, str) for name in record):
            raise TableError(f"{source}, {counted} {number} is {_kind(record)}; it must be an object of columns.")
        columns |= dict.fromkeys(record)
    return RawTable(
        source=source, columns=tuple(columns), rows=tuple(map(_without_gaps, records)), numbers=places,
        counted=counted, split=split, odd={},
    )  # fmt: skip


def _without_gaps(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the cells that hold nothing: None and NaN."""
    return {name: value for name, value in record.items() if not _is_gap(value)}


def _is_gap(value: object) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (
        isinstance(value, float) and math.isnan(value)
    )  # fmt: skip


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", dict: "an object"}.get(type(value), f"of type {type(value).__name__}")


def _separated(text: str, path: Path, delimiter: str | None) -> RawTable:
    """Comma-separated values; the delimiter is the one that splits the header into most columns."""
    declared = _SEP.match(text)
    if declared:
        delimiter, text = declared[1], text[declared.end() :]
    rows = _cells(text, path, delimiter or max(DELIMITERS, key=lambda one: _n_columns(text, one)), 1 if declared else 0)
    header = tuple(next(rows)[1])
    _check_header(header, path)
    numbers, kept, odd = list[int](), list[Mapping[str, Any]](), dict[int, int]()
    for number, cells in rows:
        if not any(cells):
            continue  # a blank line
        numbers.append(number)
        kept.append(dict(zip(header, cells, strict=False)))
        if len(cells) != len(header):
            odd[number] = len(cells)
        if len(kept) > MOST_ROWS:
            raise TableError(f"table {str(path)!r} has more than {MOST_ROWS:,} rows, the most that are read. Split it.")
    if not kept:
        raise TableError(f"table {str(path)!r} has a header and no rows. Give at least two pairs.")
    return RawTable(source=str(path), columns=header, rows=tuple(kept), numbers=tuple(numbers), odd=odd)


def _n_columns(text: str, delimiter: str) -> int:
    """Into how many columns a delimiter splits the header; 0 if it makes no sense of its quotes."""
    try:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)))
    except csv.Error:
        return 0


def _cells(text: str, path: Path, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row and the line that it begins in, `skipped` lines in front counted."""
    reader, before = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), skipped
    try:
        for cells in reader:
            yield before + 1, cells
            before = skipped + reader.line_num
    except csv.Error as error:
        raise FormatError(
            f"table {str(path)!r}, line {before + 1}: {error}. Write a quote inside a quoted cell twice, and close "
            "every quote."
        ) from error


def _check_header(header: Sequence[str], path: Path) -> None:
    if not any(name.strip() for name in header):
        raise TableError(f"table {str(path)!r} has no header. Name the columns in its first line.")
    if twice := [name for name in dict.fromkeys(header) if name.strip() and header.count(name) > 1]:
        raise TableError(f"table {str(path)!r} has the column {twice[0]!r} {header.count(twice[0])} times. Rename one.")


def _is_lines(text: str) -> bool:
    """Whether a JSON file holds one object a line, as some projects name such files `.json`."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    return len(lines) == 2 and all(line.strip()[0] == "{" and line.strip()[-1] == "}" for line in lines)


def _json_lines(text: str, path: Path) -> RawTable:
    numbers, records = list[int](), list[Any]()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            numbers.append(number)
            records.append(parse_json(line, f"table {str(path)!r}, line {number}", "Write one object a line."))
    return of_records(str(path), records, numbers=numbers, counted=LINES)


def _json(text: str, path: Path) -> tuple[RawTable, ...]:
    """A list of rows; or an object that holds one list, lists by split or by column, or what pandas writes."""
    source, found = str(path), parse_json(text, f"table {str(path)!r}", "Give a list of objects.")
    if isinstance(found, list):
        return (of_records(source, found),)
    if isinstance(found, dict) and found.keys() == {"columns", "index", "data"}:  # pandas, orient="split"
        with parsing(f"table {source!r}"):
            return (of_records(source, [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]),)
    if isinstance(found, dict) and found and all(isinstance(value, dict) for value in found.values()):
        keys = next(iter(found.values())).keys()
        if all(value.keys() == keys for value in found.values()):  # pandas, orient="columns"
            return (of_records(source, [{name: found[name][key] for name in found} for key in keys]),)
    if isinstance(found, dict) and found and all(isinstance(value, list) for value in found.values()):
        if all(value and isinstance(value[0], dict) for value in found.values()):
            several = len(found) > 1
            return tuple(of_records(source, rows, split=name if several else "") for name, rows in found.items())
        if len({len(value) for value in found.values()}) == 1:
            rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
            return (of_records(source, rows),)
    lists = [value for value in found.values() if _holds_rows(value)] if isinstance(found, dict) else []
    if len(lists) == 1 and [] not in found.values():  # auto-circuit: `prompts`, and labels of their tokens
        return (of_records(source, lists[0]),)
    raise TableError(f"{source} holds {_kind(found)}; it must be a list of objects, one a pair.")


def _holds_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _parquet(path: Path) -> RawTable:
    import pyarrow.parquet

    check_file(path, "table")
    source = str(path)
    with parsing(f"table {source!r}"):
        file = pyarrow.parquet.ParquetFile(path)
        groups = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
        if sum(groups) > MOST_TEXT or file.metadata.num_rows > MOST_ROWS:
            raise TableError(
                f"{source} unpacks to {sum(groups):,} bytes in {file.metadata.num_rows:,} rows; at most "
                f"{MOST_TEXT:,} bytes and {MOST_ROWS:,} rows are read. Split it."
            )
        rows = file.read().to_pylist()
    return of_records(source, rows)
