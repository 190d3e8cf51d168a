"""From rows of a table to pairs: columns resolved once, every row checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitlab.data.example import Example
from circuitlab.data.tables import cells, greater_than
from circuitlab.data.tables.cells import CellError
from circuitlab.data.tables.layouts import (
    CORRUPT_SPAN,
    GIVEN,
    GREATER_THAN,
    LAYOUTS,
    SPAN,
    UNPAIRED,
    TableLayout,
    nearest,
    optional,
    plain,
    recognised,
    root,
)
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.readers import RawTable
from circuitlab.data.tables.table import MOST_CHECKED, BadRow, PairRow, PairTable
from circuitlab.errors import CircuitLabError, TableError, UnknownNameError

FILES = "files"  # in the place of a split column, where each split has files of its own
# Whole numbers in a table of token positions that are none.
_NO_SPAN = ("id", "idx", "index", "prob", "length")


class BadCellError(Exception):
    """A row that holds no pair, with the field that is wrong."""

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(rule)
        self.name, self.value, self.rule = name, value, rule


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the fields of a pair are in a table.

    Attributes:
        layout: The layout, or `GIVEN`.
        paths: Field -> path; spans are `span:NAME`.
    """

    layout: TableLayout
    paths: Mapping[str, str]

    def value(self, row: Mapping[str, Any], name: str) -> Any:
        """The cell of a field; None where the table has none.

        Returns:
            The cell, or None.

        Raises:
            BadCellError: A list in the cell has no such item.
        """
        path = self.paths.get(name)
        if path is None:
            return None
        try:
            return cells.cell(row, path)
        except CellError as error:
            raise BadCellError(name, row.get(root(path)), str(error)) from None


def pair_table(tables: Sequence[RawTable], options: TableOptions, source: str) -> PairTable:
    """The pairs of some tables, all of one layout.

    Args:
        tables: Rows, one table a split.
        options: Columns that are not recognised.
        source: What holds them, for messages.

    Returns:
        The table.

    Raises:
        TableError: The layout is not known, the tables differ, or no row holds a pair.
        UnknownNameError: A column is not there.
    """
    header = tuple(dict.fromkeys(name for table in tables for name in table.columns))
    columns = resolved(header, options, source)
    if any(table.split for table in tables) and "split" not in options.columns:
        columns = Columns(columns.layout, {name: path for name, path in columns.paths.items() if name != "split"})
    columns = _with_token_starts(columns, header, tables)
    columns = _with_years(columns, tables)
    rows, bad = list[PairRow](), list[BadRow]()
    for table in tables:
        for row, number in zip(table.rows, table.numbers, strict=True):
            found = _checked(row, number, table, columns)
            (bad if isinstance(found, BadRow) else rows).append(found)  # pyright: ignore[reportArgumentType]
    split = columns.paths.get("split") or (FILES if any(table.split for table in tables) else "")
    found = PairTable(
        source=source, counted=tables[0].counted, layout=columns.layout.name, columns=columns.paths, rows=tuple(rows),
        bad=tuple(bad), options=options, split_column=split, notes=tuple(_notes(columns, header, tables)),
        metric=columns.layout.metric,
    )  # fmt: skip
    if not rows:
        raise TableError(f"{found.rows_shown(bad)}. No row holds a pair.")
    return found


def resolved(header: Sequence[str], options: TableOptions, source: str) -> Columns:
    """Find the columns of a table: those given, then those of the layout that fits.

    Args:
        header: The names of the columns.
        options: The columns given.
        source: What has them, for messages.

    Returns:
        The columns.

    Raises:
        TableError: No layout fits, and too few columns are given.
        UnknownNameError: A column is not there.
    """
    spelt = {plain(name): name for name in reversed(header)}
    given = dict[str, str]()
    for name, column in options.columns.items():
        there = column if column in header else spelt.get(plain(column), "") if column else ""
        if column and not there and root(column) not in header:
            raise UnknownNameError.of("column", column, header, owner=source)
        given[name] = there or column
    spans = {
        mark + name[len(mark) :]: name
        for name in header
        for mark in (SPAN, CORRUPT_SPAN)
        if name.startswith(mark) and len(name) > len(mark)
    }
    known = {name for name, column in given.items() if column}
    left_out = "corrupt" in given and not given["corrupt"]
    layout, found = recognised(header, known | {"corrupt"} if left_out else known) or (GIVEN, optional(GIVEN, header))
    for name, other in (("answer", "answer_id"), ("distractor", "distractor_id")):
        if given.get(name):
            found.pop(other, None)
        if given.get(other):
            found.pop(name, None)
    paths = {name: path for name, path in (found | spans | given).items() if path}
    bare = left_out or (layout is not GIVEN and "corrupt" not in layout.needed)
    needed = ("clean", "answer") if bare else ("clean", "corrupt", "answer")
    if any(name not in paths and f"{name}_id" not in paths for name in needed):
        raise _unknown(header, known | ({"corrupt"} if left_out else set()), source)
    return Columns(layout, paths)


def _unknown(header: Sequence[str], known: Collection[str], source: str) -> TableError:
    """The error about columns that no layout has, with what is missing for the nearest one."""
    layout, missing = nearest(header)
    missing = tuple(name for name in missing if name not in known)
    near = f" for the layout {layout.name}" if missing and len(missing) < len(layout.needed) else ""
    missing = (missing if near else tuple(one for one in ("clean", "corrupt", "answer") if one not in known)) or (
        "answer",
    )
    has = f"{source} has the columns {', '.join(map(repr, header))}"
    for columns, why in UNPAIRED.items():
        if set(columns) <= set(map(plain, header)):
            return TableError(f"{has}, which hold no pairs of prompts. {why}")
    layouts = f"Known layouts: {'; '.join(one.name for one in LAYOUTS)}."
    if "corrupt" in missing:
        layouts = f"For a table without corrupted prompts leave the name empty (--columns corrupt=). {layouts}"
    return TableError(
        f"{has}, those of no known layout: nothing holds "
        f"{' and '.join(missing)}{near}. Name the columns: columns={{{', '.join(f'{one!r}: ...' for one in missing)}}} "
        f"(--columns {','.join(f'{one}=THEIRS' for one in missing)}). "
        f"{layout.join if near and missing == ('corrupt',) and layout.join else layouts}"
    )


def _notes(columns: Columns, header: Sequence[str], tables: Sequence[RawTable]) -> Iterator[str]:
    """What else a reader should know of how a table is read."""
    rows = [row for table in tables for row in table.rows]
    if "corrupt" not in columns.paths:
        yield "no corrupted prompts"
    if columns.layout is GREATER_THAN:
        yield "answers are the later years, 00 to 99, and distractors the others"
    elif not any(name in columns.paths for name in ("distractor", "distractor_id")):
        yield "no distractors"
    if "answer_id" in columns.paths:
        yield "token ids must be those of the model"
    for name in ("answer", "distractor"):
        path = columns.paths.get(name)
        if path and path in header and any(cells.is_whole(row.get(path)) for row in rows):
            yield f"whole numbers in {path!r} are read as their digits"
    used = {root(path) for path in columns.paths.values()} | set(columns.paths.values())
    if unused := [name for name in header if name.strip() and name not in used]:
        yield f"not used: {', '.join(unused)}"
    if len(rows) > MOST_CHECKED:
        yield "the cells of every row are checked, tokens only of the rows drawn"


def _with_years(columns: Columns, tables: Sequence[RawTable]) -> Columns:
    """The columns of a file of EAP-IG for greater-than: what it has for an answer is the year of each prompt."""
    if not columns.layout.name.startswith("EAP-IG") or {"distractor", "distractor_id"} & columns.paths.keys():
        return columns
    name = "answer" if "answer" in columns.paths else "answer_id"
    cells_of = [(columns.value(row, "clean"), columns.value(row, name)) for table in tables for row in table.rows]
    labelled = [(prompt, label) for prompt, label in cells_of if not cells.is_empty(label)]
    if not labelled or not all(greater_than.is_year(prompt, label) for prompt, label in labelled):
        return columns
    return Columns(GREATER_THAN, {"answer" if one == name else one: path for one, path in columns.paths.items()})


def _with_token_starts(columns: Columns, header: Sequence[str], tables: Sequence[RawTable]) -> Columns:
    """Spans that a table gives by the index of their first token: its other columns of whole numbers."""
    if not columns.layout.token_starts or "length" not in columns.paths or any(SPAN in name for name in columns.paths):
        return columns
    used = {root(path) for path in columns.paths.values()}
    rows = [row for table in tables for row in table.rows]

    def is_start(name: str) -> bool:
        if not name.strip() or name in used or plain(name).rpartition("_")[2] in _NO_SPAN:
            return False
        try:
            return all(1 <= cells.whole(row.get(name)) < cells.whole(row.get(columns.paths["length"])) for row in rows)
        except CellError:
            return False

    starts = {SPAN + name: name for name in header if is_start(name)}
    return Columns(columns.layout, {**columns.paths, **starts})


def _checked(row: Mapping[str, Any], number: int, table: RawTable, columns: Columns) -> PairRow | BadRow:
    """The pair of a row, or why it holds none."""
    if number in table.odd:
        rule = f"is the last of {table.odd[number]} cells; the header names {len(table.columns)}"
        last = list(row)[-1] if row else ""
        return BadRow(number=number, column=last, value=row.get(last), rule=rule)
    try:
        return _pair(row, number, table, columns)
    except BadCellError as error:
        return BadRow(
            number=number, column=columns.paths.get(error.name, error.name), value=error.value, rule=error.rule
        )


def _pair(row: Mapping[str, Any], number: int, table: RawTable, columns: Columns) -> PairRow:
    layout = columns.layout

    def read(name: str, parse: Any, **how: Any) -> Any:
        value = columns.value(row, name)
        try:
            return parse(value, **how)
        except CellError as error:
            raise BadCellError(name, value, str(error)) from None

    clean = read("clean", cells.text_of)
    corrupt = read("corrupt", cells.text_of) if "corrupt" in columns.paths else None
    if clean == corrupt:
        raise BadCellError("corrupt", corrupt, "is the clean prompt as well; change what matters in one")
    words, ids = dict[str, tuple[str, ...]](), dict[str, tuple[int, ...]]()
    for name in ("answer", "distractor"):
        if f"{name}_id" in columns.paths:
            ids[name] = read(f"{name}_id", cells.ids_of)
        elif name in columns.paths:
            words[name] = read(name, cells.words_of, lead=layout.lead)
    if layout is GREATER_THAN:
        words["answer"], words["distractor"] = read("answer", greater_than.later_and_earlier)
    for kind in (words, ids):
        if shared := [one for one in kind.get("answer", ()) if one in kind.get("distractor", ())]:
            name = "distractor" if kind is words else "distractor_id"
            raise BadCellError(name, shared[0], "is answer and distractor at once")
    length = read("length", cells.whole) if "length" in columns.paths else None
    named = dict(_spans(row, columns, clean, corrupt))
    split = read("split", cells.split_of) if "split" in columns.paths else ""
    if table.split:
        try:
            split = cells.split_of(table.split)
        except CellError as error:
            raise BadCellError("split", table.split, str(error)) from None
    try:
        example = Example(
            clean, corrupt, words.get("answer", ()), words.get("distractor"), named.get(SPAN, {}),
            named.get(CORRUPT_SPAN, {}), answer_ids=ids.get("answer", ()), distractor_ids=ids.get("distractor", ()),
            token_spans=_token_spans(row, columns, length) if layout.token_starts else {},
            standalone_answers=layout is GREATER_THAN,
        )  # fmt: skip
    except CircuitLabError as error:
        raise BadCellError("clean", clean, f"makes no pair: {error}") from None
    return PairRow(number=number, example=example, split=split, length=length)


def _spans(
    row: Mapping[str, Any], columns: Columns, clean: str, corrupt: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Character ranges by name, of the clean and of the corrupted prompt."""
    if columns.layout.token_starts:
        return
    nested = columns.value(row, "spans")
    for mark, prompt in ((SPAN, clean), (CORRUPT_SPAN, corrupt)):
        if prompt is None:
            continue
        given = {name: columns.value(row, name) for name in columns.paths if name.startswith(mark)}
        if mark == SPAN and not cells.is_empty(nested):
            try:
                given |= {mark + name: value for name, value in cells.spans_of(nested).items()}
            except CellError as error:
                raise BadCellError("spans", nested, str(error)) from None
        found = {}
        for name, value in given.items():
            if cells.is_empty(value):
                continue  # a span that this prompt does not have
            try:
                found[name.removeprefix(mark)] = cells.span_of(value, prompt)
            except CellError as error:
                raise BadCellError(name if name in columns.paths else "spans", value, str(error)) from None
        yield mark, found


def _token_spans(row: Mapping[str, Any], columns: Columns, length: int | None) -> dict[str, tuple[int, int]]:
    """Token ranges from the index of each span's first token, one beginning-of-sequence token counted."""
    starts = {}
    for name in columns.paths:
        if name.startswith(SPAN):
            value = columns.value(row, name)
            try:
                starts[name.removeprefix(SPAN)] = cells.whole(value)
            except CellError as error:
                raise BadCellError(name, value, str(error)) from None
    ordered = sorted(starts, key=lambda name: starts[name])
    ends = [*(starts[name] for name in ordered[1:]), length or 0]
    return {
        name: (starts[name] - 1, end - 1) for name, end in zip(ordered, ends, strict=True) if 1 <= starts[name] < end
    }
