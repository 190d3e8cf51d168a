"""The HTML templates, style sheets and scripts of this package, and how they write numbers.

All values are escaped. The content security policy of a page names its one script, a file of this package, by SHA-256:
a prompt, token or description is never executed, even if it were inserted without escaping.
"""

from __future__ import annotations

import base64
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from circuitlab.digests import sha256
from circuitlab.summary import plural

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def finite(value: object) -> float | None:
    """A finite number; None for NaN, infinities, truth values and everything else.

    Returns:
        The number, or None.

    Example:
        >>> finite(2), finite(float("nan")), finite("2")
        (2.0, None, None)
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def number(value: object, digits: int = 2) -> str:
    """A number with this many decimals; a dash where there is none.

    Returns:
        The number as text.

    Example:
        >>> number(0.9312), number(1519, 0), number(None) == NONE
        ('0.93', '1,519', True)
    """
    if (value := finite(value)) is None:
        return NONE
    written = f"{value:,.{digits}f}"
    return (written.lstrip("-") if float(written.replace(",", "")) == 0 else written).replace("-", MINUS)


def significant(value: object, digits: int = 3) -> str:
    """A number with this many significant digits, for quantities of unknown size.

    Returns:
        The number as text.
    """
    if (value := finite(value)) is None:
        return NONE
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return number(value, max(0, decimals)) if decimals <= 6 else f"{value:.{digits - 1}e}".replace("-", MINUS)


def percent(value: object, digits: int = 1) -> str:
    """A share as a percentage with a narrow space.

    Returns:
        The percentage as text.
    """
    share = finite(value)
    return NONE if share is None else f"{number(100 * share, digits)}\u202f%"


def interval(ends: object, digits: int = 2) -> str:
    """Two ends of a 95 % interval in square brackets; empty where there are none.

    Returns:
        The interval as text.

    Example:
        >>> interval([0.88, 0.97]), interval(None)
        ('95 % interval [0.88, 0.97]', '')
    """
    if not isinstance(ends, list | tuple) or len(ends) != 2 or NONE in (number(ends[0]), number(ends[1])):
        return ""
    return f"95 % interval [{number(ends[0], digits)}, {number(ends[1], digits)}]"


def with_interval(value: object, ends: object) -> str:
    """A number with its 95 % interval, if it has one.

    Returns:
        Both as text.
    """
    return ", ".join(filter(None, (number(value), interval(ends))))


_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> Markup:
    """A template filled in.

    Args:
        template: Name of a file in `templates/`.
        values: What it shows; everything but `Markup` is escaped.

    Returns:
        The HTML.

    Example:
        >>> render("attention_help.html.j2")[:16]
        Markup('Rows are queries')
    """
    return Markup(_environment().get_template(template).render(values))


@cache
def asset(name: str) -> Markup:
    """A style sheet or script of `templates/`, not escaped.

    Returns:
        Its text.
    """
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def json_text(value: Any) -> Markup:
    r"""JSON for a data element that the script of a page reads; no text in it can end the element.

    Returns:
        The text, safe within a script element.

    Raises:
        ValueError: `value` holds NaN or an infinity.

    Example:
        >>> json_text(["</script>"])
        Markup('["\\u003c/script\\u003e"]')
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"asset": asset, "with_interval": with_interval}
    made.filters |= {"json": json_text, "base64": _base64, "sha256": _sha256}
    made.filters |= {"number": number, "significant": significant, "percent": percent, "interval": interval}
    made.filters["counted"] = plural
    return made


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _sha256(script: str) -> Markup:
    return Markup(_base64(bytes.fromhex(sha256(script))))
