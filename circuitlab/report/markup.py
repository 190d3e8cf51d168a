"""HTML by construction: plain text is escaped where it goes in, only `Html` passes as it is."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
_EMPTY_TAGS = frozenset({"img", "meta", "br"})


class Html(str):
    """Text that is HTML already: made by `element` and `joined`, or written in this package."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str | None) -> Html:
    """An element with its children; those that are plain text are escaped.

    Args:
        tag: Name of the element.
        children: Text or `Html`; None is left out.
        attributes: Values are escaped; None leaves the attribute out. `class_` is written `class`, `_` becomes `-`.

    Example:
        >>> element("p", "a < b ", element("b", "</p>"), class_="lede")
        '<p class="lede">a &lt; b <b>&lt;/p&gt;</b></p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY_TAGS:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Html:
    """Children one after the other; plain text among them is escaped."""
    parts = (child if isinstance(child, Html) else html.escape(child) for child in children if child is not None)
    return Html("".join(parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), name: str = "") -> Html:
    """A table whose first cell of each row is its heading.

    Args:
        header: One heading a column.
        rows: Cells, text or `Html`.
        numbers: Columns that hold numbers, set flush right.
        name: Class of the table, for the style sheet.
    """
    kinds = [("num" if i in numbers else None) for i in range(len(header))]
    head = element(
        "tr", *(element("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True))
    )
    body = (
        element(
            "tr",
            *(
                element("th", cell, scope="row", class_=kind) if i == 0 else element("td", cell, class_=kind)
                for i, (cell, kind) in enumerate(zip(row, kinds, strict=True))
            ),
        )
        for row in rows
    )
    return element(
        "div", element("table", element("thead", head), element("tbody", *body), class_=name or None), class_="scroll"
    )


def facts(pairs: Iterable[tuple[str, str | None]]) -> Html:
    """Names with their values; those without a value are left out."""
    rows = ((element("dt", name), element("dd", value)) for name, value in pairs if value not in (None, ""))
    return element("dl", *(joined(*row) for row in rows), class_="facts")


def number(value: object, digits: int = 2) -> str:
    """A number with so many decimals; a dash where there is none.

    Example:
        >>> number(0.9312), number(1519, 0), number(None) == NONE
        ('0.93', '1,519', True)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    written = f"{value:,.{digits}f}"
    return (written.lstrip("-") if float(written.replace(",", "")) == 0 else written).replace("-", MINUS)


def significant(value: object, digits: int = 3) -> str:
    """A number with so many significant digits, for quantities of unknown size."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return number(value, max(0, decimals)) if decimals <= 6 else f"{value:.{digits - 1}e}".replace("-", MINUS)


def percent(value: object, digits: int = 1) -> str:
    """A share as a percentage with a narrow space."""
    return NONE if number(value) == NONE else f"{number(100 * value, digits)}\u202f%"  # type: ignore[operator]


def interval(ends: object, digits: int = 2) -> str:
    """Two ends of a 95 % interval in square brackets; empty where there are none.

    Example:
        >>> interval([0.88, 0.97]), interval(None)
        ('95 % interval [0.88, 0.97]', '')
    """
    if not isinstance(ends, list | tuple) or len(ends) != 2 or NONE in (number(ends[0]), number(ends[1])):
        return ""
    return f"95 % interval [{number(ends[0], digits)}, {number(ends[1], digits)}]"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    Example:
        >>> counted(1, "edge"), counted(1519, "edge")
        ('1 edge', '1,519 edges')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
