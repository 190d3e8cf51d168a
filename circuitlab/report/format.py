"""Numbers as the pages show them."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def finite(value: object) -> float | None:
    """A finite number; None for NaN, infinities, truth values and everything else.

    Example:
        >>> finite(2), finite(float("nan")), finite("2")
        (2.0, None, None)
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def number(value: object, digits: int = 2) -> str:
    """A number with this many decimals; a dash where there is none.

    Example:
        >>> number(0.9312), number(1519, 0), number(None) == NONE
        ('0.93', '1,519', True)
    """
    if (value := finite(value)) is None:
        return NONE
    written = f"{value:,.{digits}f}"
    return (written.lstrip("-") if float(written.replace(",", "")) == 0 else written).replace("-", MINUS)


def significant(value: object, digits: int = 3) -> str:
    """A number with this many significant digits, for quantities of unknown size."""
    if (value := finite(value)) is None:
        return NONE
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return number(value, max(0, decimals)) if decimals <= 6 else f"{value:.{digits - 1}e}".replace("-", MINUS)


def percent(value: object, digits: int = 1) -> str:
    """A share as a percentage with a narrow space."""
    share = finite(value)
    return NONE if share is None else f"{number(100 * share, digits)}\u202f%"


def interval(ends: object, digits: int = 2) -> str:
    """Two ends of a 95 % interval in square brackets; empty where there are none.

    Example:
        >>> interval([0.88, 0.97]), interval(None)
        ('95 % interval [0.88, 0.97]', '')
    """
    if not isinstance(ends, list | tuple) or len(ends) != 2 or NONE in (number(ends[0]), number(ends[1])):
        return ""
    return f"95 % interval [{number(ends[0], digits)}, {number(ends[1], digits)}]"


def with_interval(value: object, ends: object) -> str:
    """A number with its 95 % interval, if it has one."""
    return ", ".join(filter(None, (number(value), interval(ends))))


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    Example:
        >>> counted(1, "edge"), counted(1519, "edge")
        ('1 edge', '1,519 edges')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
