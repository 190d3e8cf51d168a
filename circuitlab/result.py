"""What every result has: a short repr, a table (`to_frame`), a record for JSON (`to_record`) and a figure (`plot`).

Figures are registered by `circuitlab.viz` (`drawing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from circuitlab.drawing import draw
from circuitlab.parts import Edge, ModelSpec, Node, Reader
from circuitlab.summary import Summary

if TYPE_CHECKING:
    import pandas as pd


# Fields of these types are facts about the whole result; arrays, sequences and parts are in its table.
_FACTS = (str, int, float, Enum, Mapping, ModelSpec, PurePath, type(None))


class Result(Summary):
    """A result. Data classes that derive from it are declared with `repr=False`."""

    __slots__ = ()

    def to_frame(self) -> pd.DataFrame:
        """A table of one row, with a column for each field that is a single value.

        Returns:
            The table.
        """
        import pandas as pd

        return pd.DataFrame([self._named()])

    def to_record(self) -> dict[str, Any]:
        """The result for JSON: single values by name, and `rows`, the rows of `to_frame`; None for NaN and infinity.

        Returns:
            The record.
        """
        rows = {} if type(self).to_frame is Result.to_frame else {"rows": self.to_frame()}
        return plain(self._named() | rows)

    def plot(self, **options: Any) -> Any:
        """The result as a matplotlib `Figure`.

        Args:
            options: Of the figure of this class, such as `k`, the number of bars.

        Returns:
            The figure.

        Raises:
            WrongTypeError: There is no figure of such a result.
        """
        return draw(self, **options)

    def _named(self) -> dict[str, Any]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: value for name, value in named.items() if isinstance(value, _FACTS)}


def named(value: object, *names: str) -> dict[str, Any]:
    """Some attributes of a value by their names, such as the columns of a table.

    Returns:
        Values by name.
    """
    return {name: getattr(value, name) for name in names}


def plain(value: Any) -> Any:
    """A value as JSON has it: nodes and edges by name, arrays as lists, a table as rows; None for NaN and infinity.

    Returns:
        Numbers, texts, None, lists and dicts of these.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum | Edge | Node | Reader):
        return value.value if isinstance(value, Enum) else value.name
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "to_dict"):
        return plain(value.astype(object).where(value.notna(), None).to_dict("records"))
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
