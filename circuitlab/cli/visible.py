"""Text of files and models on a terminal: characters that would act on it are spelt out."""

import re

# Control characters but for line breaks and tabs, and those that turn the direction of text.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Replace control characters of a text by Python escapes.

    Returns:
        The text.

    Example:
        >>> visible("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(text: str) -> str:
    """Replace control characters of JSON by JSON escapes.

    Returns:
        The text.
    """
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
