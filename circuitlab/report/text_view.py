"""Texts coloured token by token: blue above zero, red below; the value is shown on hover, focus or tap.

A page holds several texts and several series (neurons, features, log-probabilities), selected from a list. A series has
one scale in all its texts, symmetric about zero. Tokens and values are stored separately, so that thousands of tokens
with tens of series stay small. Without scripts the first series is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from circuitlab.data.text_values import TextValues
from circuitlab.errors import ConfigError
from circuitlab.report.render import MINUS, render
from circuitlab.viz.style import diverging, luminance

LEVELS = 20  # steps of colour on either side of zero
DIGITS = 4  # significant digits of the values that a page holds
# Largest share of the heatmaps' colour range: letters are not legible on the darkest colours.
_REACH = 0.84
# Height of a notebook frame, which grows with the text between these bounds, in pixels.
_FRAME_HEIGHT = (210, 640)
_TOKENS_A_LINE, _LINE, _FURNITURE = 22, 28, 190


def page(texts: Sequence[TextValues], *, title: str = "") -> Markup:
    """A self-contained page.

    Args:
        texts: Each is shown for the series that it has; their units and kinds must agree.
        title: Heading of the page; default: the title of the first text.

    Returns:
        The HTML.

    Raises:
        ConfigError: There is no text, or units or kinds differ.
    """
    _check(texts)
    names = list(dict.fromkeys(name for text in texts for name in text.series))
    reach, ends = zip(*(_scale(texts, name) for name in names), strict=True)
    first, heading = texts[0], title or texts[0].title
    return render(
        "text.html.j2",
        title=heading,
        notes=list(dict.fromkeys(text.note for text in texts if text.note)),
        kind=first.kind,
        names=names,
        low=_written(ends[0][0]),
        high=_written(ends[0][1]),
        unit=first.unit,
        panels=[_panel(text, names[0], reach[0], heading) for text in texts],
        ramp=Markup(ramp_rules()),
        data={
            "levels": LEVELS,
            "unit": first.unit,
            "reach": list(reach),
            "ends": [list(pair) for pair in ends],
            "panels": [_data(text, names) for text in texts],
        },
    )


def frame(texts: Sequence[TextValues], *, title: str = "") -> Markup:
    """The page in a frame of its own for a notebook cell, so that its identifiers cannot clash with others.

    Returns:
        The HTML.

    Raises:
        ConfigError: There is no text, or units or kinds differ.
    """
    inside = page(texts, title=title)
    longest = max(len(text.tokens) + 12 * sum("\n" in token for token in text.tokens) for text in texts)
    shown = sum(texts[0].series[0] in text.series for text in texts)
    height = _FURNITURE + shown * _LINE * (1 + math.ceil(longest / _TOKENS_A_LINE))
    return render(
        "frame.html.j2",
        page=inside,
        title=title or texts[0].title,
        height=min(max(height, _FRAME_HEIGHT[0]), _FRAME_HEIGHT[1]),
    )


def level(value: float, reach: float) -> str:
    """The class of a token, which is its colour: `p20` is the scale's upper end, `n20` its lower, none is zero.

    Returns:
        Name of the CSS class; empty for none.
    """
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


def ramp_rules() -> str:
    """A CSS rule for each step of colour, `n20` (lowest) to `p20` (highest), and the gradient of the legend.

    Returns:
        The style sheet.
    """
    colours = diverging()
    rules, stops = [], []
    for step in range(-LEVELS, LEVELS + 1):
        red, green, blue, _ = colours(0.5 + 0.5 * _REACH * step / LEVELS)
        colour = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
        if step:
            name = f"{'n' if step < 0 else 'p'}{abs(step)}"
            # Black where it contrasts more than white does (WCAG 2).
            letters = "#000000" if (luminance((red, green, blue)) + 0.05) ** 2 >= 0.05 * 1.05 else "#ffffff"
            rules.append(f".{name}{{background:{colour};color:{letters}}}")
        if step % 4 == 0:
            stops.append(colour)
    return f":root {{ --ramp: linear-gradient(90deg, {', '.join(stops)}); }}\n{''.join(rules)}\n"


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _data(text: TextValues, names: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "series": [names.index(name) for name in text.series],
        "values": [[_rounded(float(value)) for value in row] for row in text.values],
    }
    return made | ({"details": list(text.details)} if text.details else {})


def _panel(text: TextValues, shown: str, reach: float, heading: str) -> dict[str, Any]:
    values = text.values[text.series.index(shown)] if shown in text.series else np.full(len(text.tokens), np.nan)
    return {
        "heading": text.title if text.title != heading else "",
        "hidden": shown not in text.series,
        "tokens": [
            (level(_rounded(float(value)) or 0.0, reach), list(_pieces(token)))
            for token, value in zip(text.tokens, values, strict=True)
        ],
    }


def _pieces(token: str) -> Iterator[tuple[str, str]]:
    """A token in pieces (kind, text): "text" as it is, others marked, as a page does not show them."""
    if not token:
        yield "", "\N{EMPTY SET}"
    inner = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if inner else len(token)
    yield from [("sp", " ")] * start
    for kind, signs in groupby(inner, _kind):
        signs = list(signs)
        if kind == "text":
            yield kind, "".join(signs)
        else:
            yield from ((kind, sign if kind else f"\\x{ord(sign):02x}") for sign in signs)
    if inner:
        yield from [("sp", " ")] * (len(token) - len(token.rstrip(" ")))


def _kind(sign: str) -> str:
    """Class of a character: "nl", "tab", "" for other control characters, "text" for what a page shows."""
    return {"\n": "nl", "\t": "tab"}.get(sign, "text" if sign.isprintable() or sign == " " else "")


def _written(value: float) -> str:
    return f"{value + 0.0:.{DIGITS}g}".replace("-", MINUS)
