"""Short reprs of results: what it is, its size, its main numbers and largest entries.

A class that derives from `Summary` defines what its first line holds (`_summary`) and which lines follow (`_facts`); by
default these are its fields. At most 15 lines and 1,500 characters are shown, however large the result; inside
another result, and inside containers in a notebook, only the first line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from enum import Enum
from heapq import nsmallest
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=Any)

MOST_LINES, MOST_CHARACTERS = 15, 1500
_WIDTH = MOST_CHARACTERS // MOST_LINES - 1
_SHOWN = 4  # entries of a tuple or a mapping


class Summary:
    """A short repr. Data classes that derive from it are declared with `repr=False`."""

    __slots__ = ()

    def _summary(self) -> str:
        """What follows the class's name in the first line."""
        return ""

    def _facts(self) -> Iterable[tuple[str, object]]:
        """Label and value of each line; strings are shown as they are, everything else as `short` shows it."""
        return [(field.name, _quoted(getattr(self, field.name))) for field in fields(self)]  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        return _page(headline(self), self._facts())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython: the whole by itself, the first line inside containers."""
        printer.text(repr(self) if len(printer.stack) <= 1 else headline(self))


class Results(tuple[T, ...]):
    """Several results, one line each where they are shown."""

    __slots__ = ()

    def to_frame(self) -> pd.DataFrame:
        """The tables of all results below each other, with a column `result` for their numbers.

        Returns:
            The table.
        """
        import pandas as pd

        return pd.concat([one.to_frame().assign(result=n) for n, one in enumerate(self)], ignore_index=True)

    def to_record(self) -> list[Any]:
        """The records of all results, for JSON.

        Returns:
            One record a result.
        """
        return [one.to_record() for one in self]

    def plot(self, **options: Any) -> tuple[Any, ...]:
        """The figures of all results.

        Args:
            options: As of `plot` of one result.

        Returns:
            One matplotlib `Figure` a result.
        """
        return tuple(one.plot(**options) for one in self)

    def __repr__(self) -> str:
        return _page(f"<{len(self)} results>", ((f"[{number}]", one) for number, one in enumerate(self)))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def headline(result: Summary) -> str:
    """One line about a result: `<Grid of head_z: 4 layers x 8 heads, 100 pairs>`.

    Returns:
        The line.
    """
    title = result._summary()
    return f"<{_cut(_printable(f'{type(result).__name__} {title}'.strip()), _WIDTH - 2)}>"


def short(value: object, width: int = _WIDTH) -> str:
    """Any value in one line of at most so many characters.

    Returns:
        The line.
    """
    return _cut(_printable(_short(value)), width)


def plural(n: int, noun: str) -> str:
    """A number with its noun: "1 pair", "1,024 pairs".

    Returns:
        The text.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def largest(
    values: Iterable[float], name: Callable[[int], str], n: int = 5, label: str = "largest"
) -> Iterator[tuple[str, object]]:
    """Lines for the n entries that are largest in size, largest first."""
    numbered = ((number, float(value)) for number, value in enumerate(values) if value == value)
    order = nsmallest(n, numbered, key=lambda one: -abs(one[1]))
    names = [_printable(name(number)) for number, _ in order]
    width = max(map(len, names), default=0)
    for row, (text, (_, value)) in enumerate(zip(names, order, strict=True)):
        yield "" if row else label, f"{text:<{width}}  {value:.4g}"


def _page(first: str, facts: Iterable[tuple[str, object]]) -> str:
    """The first line and one line a fact, cut to the limits."""
    shown = list(islice(facts, MOST_LINES))
    dropped = len(shown) > MOST_LINES - 1
    shown = shown[: MOST_LINES - 2] if dropped else shown
    width = min(max((len(label) for label, _ in shown), default=0), 32)
    lines = [first]
    for label, value in shown:
        text = value if isinstance(value, str) else _short(value)
        lines.append(_cut(_printable(f"  {_cut(label, 32):<{width}}  {text}").rstrip(), _WIDTH))
    return "\n".join([*lines, "  ..."] if dropped else lines)


def _short(value: object) -> str:
    if isinstance(value, Summary):
        return headline(value)
    if isinstance(value, str):
        return repr(_cut(value, _WIDTH))
    if value is None or isinstance(value, int):
        return str(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        entries = [f"{_short(key)}: {_short(one)}" for key, one in islice(value.items(), _SHOWN)]
        return "{" + ", ".join(entries) + _more(len(value)) + "}"
    if isinstance(value, tuple | list | set | frozenset) and not hasattr(value, "_fields"):
        entries = ", ".join(_short(one) for one in islice(value, _SHOWN))
        return f"({entries}{_more(len(value))})"
    return _short_number_or_array(value)


def _short_number_or_array(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape):
        kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
        return f"{kind} [{', '.join(map(str, shape))}]"
    if shape is not None and hasattr(value, "item"):
        return _short(value.item())
    if isinstance(value, float):
        return f"{value:.4g}"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)


def _quoted(value: object) -> object:
    return short(value) if isinstance(value, str) else value


def _more(n: int) -> str:
    return f", ... ({n:,} in all)" if n > _SHOWN else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _printable(text: str) -> str:
    """The text in one line: line breaks, control characters and lone surrogates as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
