"""EAP-IG's greater-than files: their column `label` or `correct_idx` holds the year of the prompt, not an answer.

Right are all later years of the century, wrong the year itself and all earlier ones. Prices and sequences of years are
of the same form.

References:
    Hanna et al. 2023, arXiv:2305.00586.
"""

from __future__ import annotations

import re
from typing import Any

from circuitlab.data.tables.cells import CellError

YEARS = tuple(f"{year:02d}" for year in range(100))
# The last year of a prompt, and its century at the end.
_YEAR = re.compile(r"\b(\d\d)(\d\d)\b\D*\b\1$")


def is_year(prompt: Any, label: Any) -> bool:
    """Whether a prompt ends with the century of a year that it names, and a label is that year within the century.

    Args:
        prompt: The clean prompt.
        label: The cell of the label.

    Returns:
        Whether it is so.

    Example:
        >>> is_year("The war lasted from the year 1732 to the year 17", "32")
        True
        >>> is_year("The war lasted from the year 1732 to the year 17", " peace")
        False
    """
    found = _YEAR.search(prompt) if isinstance(prompt, str) else None
    label = str(label).strip()
    return found is not None and label.isdecimal() and int(label) == int(found[2])


def later_and_earlier(label: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Answers and distractors of a prompt.

    Args:
        label: Its year within the century.

    Returns:
        The later years, and the year itself with the earlier ones, two digits each.

    Raises:
        CellError: It is the last year of the century.
    """
    year = int(label)
    if year == len(YEARS) - 1:
        raise CellError("has no later year in its century")
    return YEARS[year + 1 :], YEARS[: year + 1]
