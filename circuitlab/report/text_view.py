"""Texts coloured token by token: blue above zero, red below, the stronger the larger; the value on hover, focus or tap.

One page holds several texts and several series (neurons, features, log-probabilities), chosen from a list. A series has
one scale in all its texts, symmetric about zero, so that a colour means the same number everywhere on the page. The
tokens stand in the page once and the values beside them as numbers, so thousands of tokens by tens of series stay
small. Without scripts the first series is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from circuitlab.data.text_values import TextValues
from circuitlab.errors import ConfigError, OutputExistsError
from circuitlab.files import write_bytes
from circuitlab.report.document import data_block, document
from circuitlab.report.markup import MINUS, Html, counted, element, joined
from circuitlab.report.text_assets import LEVELS, RULES, SCRIPT, ramp_rules

DIGITS = 4  # significant digits of the values that a page holds
# Of a frame in a notebook: its height follows the text within these, in pixels.
_FRAME_HEIGHT = (210, 640)
_TOKENS_A_LINE, _LINE, _FURNITURE = 22, 28, 190


def page(texts: Sequence[TextValues], *, title: str = "") -> Html:
    """A self-contained page.

    Args:
        texts: Each is shown for the series that it has; their units and kinds must agree.
        title: Heading of the page; the first text's title by default.

    Raises:
        ConfigError: There is no text, or units or kinds differ.
    """
    _check(texts)
    names = list(dict.fromkeys(name for text in texts for name in text.series))
    reach, ends = zip(*(_scale(texts, name) for name in names), strict=True)
    first, heading = texts[0], title or texts[0].title
    notes = dict.fromkeys(text.note for text in texts if text.note)
    panels = [_panel(text, names[0], reach[0], heading=text.title if text.title != heading else None) for text in texts]
    data = {
        "levels": LEVELS,
        "unit": first.unit,
        "reach": list(reach),
        "ends": [list(pair) for pair in ends],
        "panels": [_data(text, names) for text in texts],
    }
    return document(
        heading,
        element("h1", heading),
        *(element("p", note, class_="note") for note in notes),
        element("div", _choice(first.kind, names), _legend(ends[0], first.unit), class_="choice"),
        *panels,
        element("div", id="tip", role="status", hidden=""),
        data_block("values", data),
        style=ramp_rules() + RULES,
        script=SCRIPT,
    )


def frame(texts: Sequence[TextValues], *, title: str = "") -> Html:
    """The page in a frame of its own for a notebook's cell: no identifier of it can clash with another's."""
    longest = max(len(text.tokens) + 12 * sum("\n" in token for token in text.tokens) for text in texts)
    shown = sum(texts[0].series[0] in text.series for text in texts)
    height = _FURNITURE + shown * _LINE * (1 + math.ceil(longest / _TOKENS_A_LINE))
    return element(
        "iframe",
        srcdoc=page(texts, title=title),
        sandbox="allow-scripts",
        title=title or texts[0].title,
        style=f"width:100%;height:{min(max(height, _FRAME_HEIGHT[0]), _FRAME_HEIGHT[1])}px;border:0",
    )


def save(texts: Sequence[TextValues], path: str | Path, *, title: str = "", force: bool = False) -> Path:
    """Write the page to a file, under a temporary name first.

    Raises:
        ConfigError: There is no text, or units or kinds differ.
        OutputExistsError: The file exists, and `force` is not given.
    """
    target = Path(path).expanduser()
    if target.is_dir() or (target.exists() and not force):
        raise OutputExistsError(
            f"page {str(path)!r} exists. Name another file, or replace it with force=True (--force)."
        )
    written = page(texts, title=title).encode("utf-8")
    write_bytes(target, written, "page")
    return target


def level(value: float, reach: float) -> str:
    """The class of a token, which is its colour: `p20` is the scale's upper end, `n20` its lower, none is zero."""
    if not math.isfinite(value) or reach == 0:
        return ""
    # As JavaScript rounds: halves upwards.
    size = math.floor(abs(value) / reach * LEVELS + 0.5)
    return f"{'n' if value < 0 else 'p'}{size}" if size else ""


def _check(texts: Sequence[TextValues]) -> None:
    if not texts or not any(text.series for text in texts):
        raise ConfigError("a page needs at least one text with one series of values; got none.")
    for what in ("unit", "kind"):
        found = list(dict.fromkeys(getattr(text, what) for text in texts))
        if len(found) > 1:
            raise ConfigError(f"texts on one page have one {what}; these have {found}. Write a page for each.")


def _scale(texts: Sequence[TextValues], name: str) -> tuple[float, tuple[float, float]]:
    """Largest size of a series' values, and the ends of its legend: zero on a side where nothing is."""
    rows = [text.values[text.series.index(name)] for text in texts if name in text.series]
    values = np.concatenate(rows) if rows else np.zeros(0)
    values = values[np.isfinite(values)]
    reach = _rounded(float(np.abs(values).max(initial=0.0))) or 0.0
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    both_sides = low < 0 < high or low == high
    return reach, (-reach if both_sides or low < 0 else 0.0, reach if both_sides or high > 0 else 0.0)


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _data(text: TextValues, names: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "series": [names.index(name) for name in text.series],
        "values": [[_rounded(float(value)) for value in row] for row in text.values],
    }
    return made | ({"details": list(text.details)} if text.details else {})


def _panel(text: TextValues, shown: str, reach: float, *, heading: str | None) -> Html:
    values = text.values[text.series.index(shown)] if shown in text.series else np.full(len(text.tokens), np.nan)
    tokens = (
        element("span", _visible(token), class_=level(_rounded(float(value)) or 0.0, reach) or None)
        for token, value in zip(text.tokens, values, strict=True)
    )
    label = f"{counted(len(text.tokens), 'token')}; arrow keys move from one to the next"
    return element(
        "section",
        element("h2", heading) if heading else None,
        element("div", *tokens, class_="text", tabindex="0", role="group", aria_label=label),
        class_="panel",
        hidden=None if shown in text.series else "",
    )


def _visible(token: str) -> Html:
    """A token with everything in it that a page would swallow: outer spaces, line breaks, tabs, control characters."""
    if not token:
        return element("i", "\N{EMPTY SET}")
    inner = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if inner else len(token)
    end = len(token) - len(token.rstrip(" ")) if inner else 0
    space = element("i", " ", class_="sp")
    return joined(*[space] * start, *(_sign(sign) for sign in inner), *[space] * end)


def _sign(sign: str) -> str:
    if sign == "\n":
        return joined(element("i", class_="nl"), "\n")
    if sign == "\t":
        return joined(element("i", class_="tab"), "\t")
    return sign if sign.isprintable() or sign == " " else element("i", f"\\x{ord(sign):02x}")


def _choice(kind: str, names: Sequence[str]) -> Html:
    if len(names) == 1:
        return element("span", element("label", kind), element("b", names[0]))
    options = (element("option", name, value=str(i)) for i, name in enumerate(names))
    return element("label", kind, element("select", *options))


def _legend(ends: tuple[float, float], unit: str) -> Html:
    low, high = ends
    side = " pos" if low == 0 else " neg" if high == 0 else ""
    return element(
        "div",
        element("span", _written(low), id="low"),
        element("span", class_=f"ramp{side}", id="ramp"),
        element("span", _written(high), id="high"),
        element("span", unit) if unit else None,
        class_="legend",
    )


def _written(value: float) -> str:
    return f"{value:.{DIGITS}g}".replace("-", MINUS)
