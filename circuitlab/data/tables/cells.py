"""What a cell of a table means: texts, several answers, token ids, splits, spans."""

from __future__ import annotations

import ast
import json
import numbers
import re
from collections.abc import Mapping
from typing import Any

from circuitlab.data.checks import CharRange
from circuitlab.data.tables.layouts import root
from circuitlab.errors import shown

# Names of splits in files. Rows of a validation split are reference pairs if there is a test split, else held out.
SPLITS = {
    "discovery": "discovery", "train": "discovery", "training": "discovery", "circuit": "discovery",
    "held_out": "held_out", "heldout": "held_out", "test": "held_out", "eval": "held_out", "evaluation": "held_out",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "reference": "reference", "ablation": "reference",
}  # fmt: skip
_RANGE = re.compile(r"\[?\s*(\d{1,9})\s*[,:]\s*(\d{1,9})\s*\]?")
_PART = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")


class CellError(Exception):
    """A cell that holds something else than its column should; the message is the rule that it breaks."""


def cell(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path of a row: `prompt`, `metadata.subject` or `choices[answerKey]`.

    Args:
        row: Values by column.
        path: See `layouts`. A name that is a column itself is taken as one, whatever characters it has.

    Returns:
        The value; None where a column, or a part of one, is not there.

    Raises:
        CellError: A list has no such item.
    """
    if path in row:
        return row[path]
    value: Any = row.get(root(path))
    for name, index in _PART.findall(path[len(root(path)) :]):
        if isinstance(value, str):
            value = _parsed(value)  # nested values in a CSV file are text
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
            continue
        place = cell(row, index)
        place = int(place) if isinstance(place, str) and place.strip().isdigit() else place
        if not isinstance(value, list | tuple) or not isinstance(place, int) or not 0 <= place < len(value):
            raise CellError(f"has no item {shown(place)}, which column {index!r} gives")
        value = value[place]
    return value


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing.

    Returns:
        Whether it is None or a text without characters.
    """
    return value is None or (isinstance(value, str) and not value)


def text_of(value: Any, *, numbers_too: bool = False) -> str:
    """A text, character by character as it is in the file.

    Args:
        value: The cell.
        numbers_too: Take a whole number as its digits.

    Returns:
        The text.

    Raises:
        CellError: It is empty or no text.
    """
    if is_empty(value):
        raise CellError("is empty; it must be a text")
    if numbers_too and is_whole(value):
        return str(value)
    if not isinstance(value, str):
        fix = "" if isinstance(value, list | tuple | Mapping) else "; write texts in quotes"
        raise CellError(f"is {_kind(value)}, which is no text{fix}")
    if not value.strip():
        raise CellError("holds nothing but blanks; it must be a text")
    return value


def is_whole(value: Any) -> bool:
    """Whether a cell is a whole number, as data sets hold digits that they read from a CSV file.

    Returns:
        Whether it is; a text of digits is none.
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def words_of(value: Any, *, lead: str = "") -> tuple[str, ...]:
    """One word, or several as a list: of JSON or, as pandas writes them, of Python.

    Args:
        value: The cell. A whole number, also in a list, is its digits; in a text that spells a list it is none.
        lead: Text in front of every word.

    Returns:
        The words.

    Raises:
        CellError: It is empty, or a list of something else than texts.
    """
    listed, numbers_too = _as_list(value), not isinstance(value, str)
    if listed is None:
        # A blank or a line end may be an answer; nothing at all is none.
        words = (value,) if isinstance(value, str) and value and not value.strip() else None
        words = words or (text_of(value, numbers_too=numbers_too),)
    elif not listed:
        raise CellError("is a list without words; give at least one")
    else:
        words = tuple(text_of(one, numbers_too=numbers_too) for one in listed)
    if len(set(words)) < len(words):
        raise CellError("holds a word twice; name every word once")
    return tuple(lead + word for word in words)


def ids_of(value: Any) -> tuple[int, ...]:
    """One token id, or several as a list.

    Returns:
        The ids.

    Raises:
        CellError: It is empty, or holds something else than whole numbers of at least 0.
    """
    if is_empty(value):
        raise CellError("is empty; it must be a token id")
    listed = _as_list(value)
    ids = tuple(_id(one) for one in ([value] if listed is None else listed))
    if not ids:
        raise CellError("is a list without token ids; give at least one")
    if len(set(ids)) < len(ids):
        raise CellError("holds a token id twice; name every one once")
    return ids


def whole(value: Any) -> int:
    """A whole number of at least 0.

    Returns:
        The number.

    Raises:
        CellError: It is something else.
    """
    if is_empty(value):
        raise CellError("is empty; it must be a whole number")
    return _id(value)


def split_of(value: Any) -> str:
    """The split that a row belongs to: one of the values of `SPLITS`.

    Returns:
        Its name here.

    Raises:
        CellError: There is no such split.
    """
    name = re.sub(r"[\s-]+", "_", text_of(value).strip().lower())
    if name not in SPLITS:
        raise CellError("is no split; use train, validation and test, or discovery and held_out")
    return SPLITS[name]


def span_of(value: Any, prompt: str) -> CharRange:
    """A range of characters, given as two numbers or as the text that it covers.

    Args:
        value: The cell: `[3, 7]`, `3:7`, or a text that occurs once in the prompt.
        prompt: The prompt that it is in.

    Returns:
        The half-open range.

    Raises:
        CellError: It is neither, or the text occurs several times or not at all.
    """
    if isinstance(value, str) and (found := _RANGE.fullmatch(value.strip())):
        value = [int(found[1]), int(found[2])]
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(end, int) for end in value):
        start, end = value
        if not 0 <= start < end <= len(prompt):
            raise CellError(f"is outside the {len(prompt)} characters of {shown(prompt)}, or empty")
        return start, end
    text = text_of(value)
    if prompt.count(text) != 1:
        times = prompt.count(text)
        where = f"occurs {times} times in" if times else "is not in"
        raise CellError(f"{where} {shown(prompt)}; give a text that occurs once, or a range such as [3, 7]")
    start = prompt.index(text)
    return start, start + len(text)


def spans_of(value: Any) -> dict[str, Any]:
    """Spans by name, as an object of JSON.

    Returns:
        Name -> range or text.

    Raises:
        CellError: It is no object.
    """
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise CellError('is no object of spans, such as {"name": [3, 7], "verb": " gave"}')
    return {str(name): one for name, one in found.items() if one is not None}


def _id(value: Any) -> int:
    text = str(value).strip()
    if not isinstance(value, bool) and re.fullmatch(r"\d{1,9}(\.0)?", text):  # pandas writes 7.0 beside empty cells
        return int(text.removesuffix(".0"))
    raise CellError("is no whole number of at least 0")


def _as_list(value: Any) -> list[Any] | None:
    """The items of a list, which may be spelt out in a text; None for anything else."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) > 1:
        value = _parsed(value)
    if not isinstance(value, str) and hasattr(value, "tolist"):  # numpy, as Parquet gives it to pandas
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _parsed(text: str) -> Any:
    """A value of JSON or of Python that a text spells; the text itself if it spells none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, numbers.Number):
        return f"the number {value}"
    return "a list" if isinstance(value, list | tuple) else shown(value)
