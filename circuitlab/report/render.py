"""The HTML templates, style sheets and scripts of this package.

All values are escaped. The content security policy of a page names its one script, a file of this package, by SHA-256:
a prompt, token or description is never executed, even if it were inserted without escaping.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from circuitlab.digests import sha256
from circuitlab.report.format import counted, interval, number, percent, significant, with_interval

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
    """A style sheet or script of `templates/`, not escaped."""
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
    made.filters["counted"] = counted
    return made


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _sha256(script: str) -> Markup:
    return Markup(_base64(bytes.fromhex(sha256(script))))
