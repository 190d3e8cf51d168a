"""Prompt text as labels: spaces and line breaks made visible, long ones clipped, only glyphs that the font has."""

import math
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from circuitlab.viz.style import FONT

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}
SPACE = "␣"
EMPTY = "∅"
MISSING = "□"
MINUS = "\N{MINUS SIGN}"
POINTS_PER_INCH = 72.0


def visible_token(text: str, longest: int | None = None) -> str:
    r"""A token as a reader can see it.

    Spaces at either end become `␣`, line breaks `↵`, tabs `⇥`, other control characters `□`; special tokens stay.

    Args:
        text: The token, decoded on its own.
        longest: Clip to this many characters, the last being `…`; None never clips.

    Returns:
        The text to show.

    Example:
        >>> visible_token(" friend"), visible_token("\n"), visible_token("<|endoftext|>", 8)
        ('␣friend', '↵', '<|endof…')
    """
    if not text:
        return EMPTY
    body = text.strip(" \u00a0")
    start = len(text) - len(text.lstrip(" \u00a0"))
    end = len(text) - start - len(body) if body else 0
    shown = SPACE * start + body + SPACE * end
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else MISSING) for c in shown)
    return clipped(shown, longest)


def clipped(text: str, longest: int | None) -> str:
    """The text, or its beginning and `…` where it has more than `longest` characters.

    Returns:
        The text.
    """
    return text if longest is None or len(text) <= longest else text[: max(1, longest - 1)] + "…"


def drawable(text: str) -> str:
    """The text with `□` for every character that matplotlib's own font lacks, so that nothing warns.

    Returns:
        The text.
    """
    return "".join(c if c == "\n" or _has_glyph(c) else MISSING for c in text)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    return get_font(findfont(FontProperties(family=FONT))).get_char_index(ord(character)) != 0


@lru_cache(maxsize=4096)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width of one line of text in inches, in matplotlib's own font.

    Returns:
        The width in inches.
    """
    font = FontProperties(family=FONT, size=points, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(drawable(text), font, ismath=False)
    return width / POINTS_PER_INCH


def significant(value: float, digits: int = 2) -> str:
    """A number with this many significant digits, with an exponent only where it is tiny.

    Returns:
        The number as text.

    Example:
        >>> significant(0.01234), significant(12.3), significant(1519)
        ('0.012', '12', '1519')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return (f"{value:.{decimals}f}" if decimals <= 5 else f"{value:.{digits - 1}e}").replace("-", MINUS)


def number(value: float, digits: int) -> str:
    """A number with a true minus sign; what rounds to zero is a bare `0`.

    Returns:
        The number as text.

    Example:
        >>> number(3.14159, 2), number(-0.001, 2), number(float("nan"), 2)
        ('3.14', '0', '')
    """
    if value != value:
        return ""
    written = f"{value:.{digits}f}"
    if float(written) == 0.0:
        return "0"
    return written.replace("-", MINUS)
