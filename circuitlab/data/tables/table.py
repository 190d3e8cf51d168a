"""A table of pairs: its rows as examples, where each comes from, and which rows hold none."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from circuitlab.data.checks import LONGEST_LINE
from circuitlab.data.example import Example
from circuitlab.data.tables.options import TableOptions
from circuitlab.digests import sha256
from circuitlab.errors import TableError, TableWarning, shown
from circuitlab.summary import Summary, plural, short

# Every row's cells are checked when a table is read. Tables of at most so many rows are also checked whole against the
# tokenizer, in seconds; of longer ones, the rows drawn.
MOST_CHECKED = 10_000
SHOWN = 3  # bad rows in a message
VALUE = 80  # characters of a value in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One row that holds a pair.

    Attributes:
        number: Its line in the file, or its place among the rows.
        example: The pair.
        split: `discovery`, `held_out`, `validation` or `reference`; empty where the table has no splits.
        length: Tokens of the clean prompt with one beginning-of-sequence token, where the table says so.
    """

    number: int
    example: Example
    split: str = ""
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BadRow(Summary):
    """One row that holds no pair.

    Attributes:
        number: Its line in the file, or its place among the rows.
        column: The column that is wrong.
        value: What it holds.
        rule: What is wrong with it, as the end of a sentence.
        reason: The same without the row, for counting; by default `rule`.
    """

    number: int
    column: str
    value: object
    rule: str
    reason: str = ""

    def _summary(self) -> str:
        return f"{self.number}, column {short(self.column, 30)}: {short(self.value, 40)} {short(self.rule, 60)[1:-1]}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return ()


@dataclass(frozen=True, kw_only=True, repr=False)
class PairTable(Summary):
    """The pairs of a table, in the order of its rows.

    Attributes:
        source: The file, folder or object that holds it, for messages.
        counted: What numbers of rows count: "line" or "row".
        layout: Name of the layout.
        columns: Our field -> the table's column; spans are `span:NAME`.
        rows: The rows that hold pairs.
        bad: The rows that hold none.
        options: How it was read.
        split_column: The column that says which split a row belongs to, or "files" where each split has its own; empty
            if there is none.
        dropped: Rule -> number of rows left out, of a table that was read before.
        notes: What else a reader should know, such as columns that are not used.
        metric: The metric that the layout is made for; empty for the usual ones.
    """

    source: str
    counted: str
    layout: str
    columns: Mapping[str, str]
    rows: tuple[PairRow, ...]
    bad: tuple[BadRow, ...] = ()
    options: TableOptions = field(default_factory=TableOptions)
    split_column: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metric: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the pairs, their order and their splits: the same for the same rows in another format."""
        return sha256(*(line + "\n" for line in map(_line, self.rows)))

    @property
    def n_dropped(self) -> int:
        """Number of rows that hold no pair."""
        return len(self.bad) + sum(self.dropped.values())

    @property
    def has_distractors(self) -> bool:
        """Whether every pair has a distractor."""
        return all(row.example.distractors or row.example.distractor_ids for row in self.rows)

    def by_column(self) -> str:
        """The columns that are read, for a person.

        Returns:
            Each field with its column.
        """
        return ", ".join(f"{name}={column}" for name, column in self.columns.items())

    def described(self) -> str:
        """The table in one line: rows, layout, columns, notes.

        Returns:
            The text, cut to what a summary may have.
        """
        text = "; ".join((f"{len(self.rows):,} pairs", f"layout {self.layout}: {self.by_column()}", *self.notes))
        text = "".join(character if character.isprintable() else " " for character in text)
        return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 3]}..."

    def checked(self) -> PairTable:
        """The same table, if no more of its rows hold no pair than allowed; `TableWarning` names them.

        Returns:
            The table itself.

        Raises:
            TableError: There are more than `max_bad_rows`.
        """
        self._refuse(self.bad)
        self._warn(self.bad)
        spaced = [column for column in self.columns.values() if column[:1] == " "]
        if spaced:
            warnings.warn(
                f"{self.source}: the name of column {spaced[0]!r} begins with a space, so may its cells. Spaces are "
                "part of a prompt or answer: write no space after a delimiter.",
                TableWarning,
                stacklevel=2,
            )
        if self.rows and all(map(_joins, self.rows)):
            one = self.rows[0].example
            warnings.warn(
                f"{self.source}: every answer continues the last word of its prompt, such as "
                f"{shown(one.answers[0])} after {shown(one.clean[-20:])}. A separate word needs its space in front.",
                TableWarning,
                stacklevel=2,
            )
        return self

    def _summary(self) -> str:
        return f"of {plural(len(self.rows), 'pair')} in {short(self.source, 60)}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "layout", self.layout
        yield "columns", self.by_column()
        yield "splits by", self.split_column or "the seed"
        if self.n_dropped:
            yield "bad rows", f"{self.n_dropped:,} left out"
        yield "first", self.rows[0].example if self.rows else "none"

    def judged(self, bad: Sequence[BadRow]) -> dict[str, int]:
        """Refuse rows that a model cannot be given, if with those that hold no pair they are more than allowed.

        Args:
            bad: The rows; `TableWarning` names them.

        Returns:
            Reason -> how many rows are left out, those that hold no pair included.

        Raises:
            TableError: There are more than `max_bad_rows`.
        """
        self._refuse((*self.bad, *bad))
        self._warn(bad)
        counts = Counter(self.dropped)
        counts.update(one.reason or f"column {one.column!r} {one.rule}" for one in (*self.bad, *bad))
        return dict(counts)

    def _refuse(self, bad: Sequence[BadRow]) -> None:
        total, allowed = len(bad) + sum(self.dropped.values()), self.options.max_bad_rows
        if total > allowed:
            raise TableError(
                f"{self.rows_shown(bad)}. {plural(total, 'bad row')}, {allowed} allowed: correct them, or leave out as "
                f"many with max_bad_rows={total} (--max-bad-rows {total})."
            )

    def _warn(self, bad: Sequence[BadRow]) -> None:
        if bad:
            message = f"{self.rows_shown(bad)}. {plural(len(bad), 'bad row')} left out."
            warnings.warn(message, TableWarning, stacklevel=3)

    def rows_shown(self, bad: Sequence[BadRow]) -> str:
        """The first of some bad rows, for a message.

        Returns:
            File, line, column, value and rule of each.
        """
        parts = [
            f"{self.counted} {one.number}, column {one.column!r}: {shown(one.value, VALUE)} {one.rule.rstrip('. ')}"
            for one in bad[:SHOWN]
        ]
        return f"{self.source}, " + "; ".join(parts) + ("; ..." if len(bad) > SHOWN else "")


def record_of(row: PairRow) -> dict[str, object]:
    """A row as JSON holds it; see `rows.row_of_record`.

    Returns:
        The fields that are not empty, by name.
    """
    one = row.example
    record = {
        "number": row.number, "split": row.split, "clean": one.clean, "corrupt": one.corrupt,
        "answers": list(one.answers), "distractors": list(one.distractors), "answer_ids": list(one.answer_ids),
        "distractor_ids": list(one.distractor_ids), "spans": {name: list(ends) for name, ends in one.spans.items()},
        "corrupt_spans": {name: list(ends) for name, ends in one.corrupt_spans.items()},
        "token_spans": {name: list(ends) for name, ends in one.token_spans.items()}, "length": row.length,
        "standalone_answers": one.standalone_answers or None,
    }  # fmt: skip
    return {name: value for name, value in record.items() if value not in ("", [], {}, None)}


def row_of_record(record: Mapping[str, Any]) -> PairRow:
    """The row that `record_of` wrote.

    Returns:
        The row.

    Raises:
        TaskError: It holds no pair.
        KeyError: A field is missing.
        TypeError: A field is of another type.
    """
    lists: dict[str, Any] = {
        name: tuple(_list(record, name)) for name in ("answers", "distractors", "answer_ids", "distractor_ids")
    }
    spans: dict[str, Any] = {name: record.get(name, {}) for name in ("spans", "corrupt_spans", "token_spans")}
    number, split, length = record["number"], record.get("split", ""), record.get("length")
    if not (isinstance(number, int) and isinstance(split, str) and isinstance(length, int | None)):
        raise TypeError("number, split or length is of another type")
    example = Example(
        record["clean"], record.get("corrupt"), lists["answers"], lists["distractors"] or None,
        answer_ids=lists["answer_ids"], distractor_ids=lists["distractor_ids"],
        standalone_answers=record.get("standalone_answers", False), **spans,
    )  # fmt: skip
    return PairRow(number=number, split=split, length=length, example=example)


def _list(record: Mapping[str, object], name: str) -> list[object]:
    value = record.get(name, [])
    if not isinstance(value, list):
        raise TypeError(f"{name} is no list")
    return value


def _joins(row: PairRow) -> bool:
    """Whether a pair's answers would be part of the last word of the prompt."""
    answers = row.example.answers
    return bool(answers) and row.example.clean[-1:].isalpha() and all(answer[:1].isalpha() for answer in answers)


def _line(row: PairRow) -> str:
    """What the digest covers: everything but the place of the row in its file."""
    return json.dumps({**record_of(row), "number": 0}, sort_keys=True)
