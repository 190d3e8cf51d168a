"""What a user says about a table: which columns, how many bad rows, which part of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from circuitlab.data.tables.layouts import CORRUPT_SPAN, FIELDS, SPAN
from circuitlab.errors import ConfigError, UnknownNameError, shown

# A comma before the next `field=` separates; a column's name may hold others.
_NEXT = re.compile(r",(?=\s*(?:" + "|".join((*FIELDS, SPAN + "[^=,]+", CORRUPT_SPAN + "[^=,]+")) + r")\s*=)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """How a table is read.

    Attributes:
        columns: Our field -> the table's column, for columns that are not recognised; an empty name leaves a field out.
        max_bad_rows: So many rows that hold no pair are left out; more are an error.
        split: The one split of a data set to read; all by default.
        config: The configuration of a data set.
        revision: The revision of a data set on the hub: a branch, tag or commit.

    Raises:
        UnknownNameError: `columns` names a field that pairs do not have.
        ConfigError: `max_bad_rows` is negative, or a name is not a text.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    max_bad_rows: int = 0
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_bad_rows, bool) or not isinstance(self.max_bad_rows, int) or self.max_bad_rows < 0:
            raise ConfigError(f"max_bad_rows is {self.max_bad_rows!r}; it counts rows and must be 0 or more.")
        for name, column in self.columns.items():
            check_field(name)
            if not isinstance(column, str):
                raise ConfigError(f"columns[{name!r}] is {shown(column)}; it must be the name of a column (str).")

    @property
    def given(self) -> dict[str, object]:
        """The options that are not the defaults."""
        values = {
            "columns": dict(self.columns), "max_bad_rows": self.max_bad_rows, "data_split": self.split,
            "data_config": self.config, "data_revision": self.revision,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value}


def check_field(name: str) -> None:
    """Refuse a field that pairs do not have.

    Raises:
        UnknownNameError: It is neither one of `FIELDS` nor the name of a span.
    """
    span = next((name.removeprefix(mark) for mark in (SPAN, CORRUPT_SPAN) if name.startswith(mark)), None)
    if not (span or name in FIELDS):
        raise UnknownNameError.of("field of a pair", name, (*FIELDS, f"{SPAN}NAME", f"{CORRUPT_SPAN}NAME"))


def parsed_columns(texts: Iterable[str]) -> dict[str, str]:
    """Columns as the command line has them.

    Args:
        texts: Each `clean=theirs,corrupt=theirs`.

    Returns:
        Our field -> their column.

    Raises:
        ConfigError: One is not of this form, or a field is given twice.
        UnknownNameError: There is no such field.

    Example:
        >>> parsed_columns(["clean=sentence,corrupt=twin, of it"])
        {'clean': 'sentence', 'corrupt': 'twin, of it'}
    """
    found = dict[str, str]()
    for text in texts:
        for part in _NEXT.split(text):
            name, equals, column = part.partition("=")
            name = name.strip()
            if not (name and equals):
                raise ConfigError(
                    f"--columns {part!r} is not of the form FIELD=COLUMN, such as --columns clean=text,corrupt=twin."
                )
            check_field(name)
            if found.setdefault(name, column) != column:
                raise ConfigError(f"--columns names {name!r} twice, as {found[name]!r} and as {column!r}. Give one.")
    return found
