"""Numbers that belong to the tokens of a text, and how they look: coloured, in a page or in a notebook's cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuitlab import drawing
from circuitlab.errors import ConfigError, OutputExistsError
from circuitlab.outputs.whole import write_bytes
from circuitlab.result import Result
from circuitlab.summary import plural, short

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TextValues(Result):
    """One or more series of values over the tokens of one text.

    Attributes:
        title: What is shown, one line.
        tokens: The tokens as a reader should see them (see `circuitlab.data.texts.shown_tokens`).
        series: A name for each series, such as the neuron's.
        values: The values; NaN where a token has none.
        unit: What they are in, such as "logits"; may be empty.
        details: One more line a token, shown with its value; none by default.
        note: A sentence or two above the text: the meaning of the values and of their sign.
        kind: What a series is, such as "neuron": the list in which one is chosen is called so.

    Raises:
        ConfigError: The numbers of tokens, series, values and details do not agree.
    """

    title: str
    tokens: tuple[str, ...]
    series: tuple[str, ...]
    values: Float[np.ndarray, "series token"]
    unit: str = ""
    details: tuple[str, ...] = ()
    note: str = ""
    kind: str = "series"

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.series), len(self.tokens)):
            raise ConfigError(
                f"{len(self.series)} series over {len(self.tokens)} tokens need values of that shape; they have "
                f"{self.values.shape}."
            )
        if self.details and len(self.details) != len(self.tokens):
            raise ConfigError(f"{len(self.details)} details are given for {len(self.tokens)} tokens. Give one each.")

    def to_frame(self) -> pd.DataFrame:
        """One row a series and token: series, position, token, value.

        Returns:
            The table.
        """
        import pandas as pd

        n_series, n_tokens = self.values.shape
        return pd.DataFrame(
            {
                "series": np.repeat(np.array(self.series, dtype=object), n_tokens),
                "position": np.tile(np.arange(n_tokens), n_series),
                "token": np.tile(np.array(self.tokens, dtype=object), n_series),
                "value": self.values.ravel(),
            }
        )

    def to_html(self) -> str:
        """A self-contained page: each token a block, blue above zero and red below.

        Returns:
            The HTML.
        """
        return text_page([self])

    def save_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `to_html` to a file.

        Returns:
            The path of the file.

        Raises:
            OutputExistsError: The file exists, and `force` is not given.
        """
        return save_text_page([self], path, force=force)

    def _repr_html_(self) -> str:
        """The page in a frame, for a notebook cell."""
        return text_frame([self])

    def _summary(self) -> str:
        return f"{short(self.title, 40)}: {len(self.series)} series x {plural(len(self.tokens), 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "tokens", self.tokens
        if self.unit:
            yield "unit", self.unit
        for name, row in zip(self.series[:8], self.values[:8], strict=True):
            best = int(np.nanargmax(np.abs(row))) if len(row) and not np.isnan(row).all() else None
            yield short(name), "no values" if best is None else f"{row[best]:.4g} at {self.tokens[best]!r}"


@dataclass(frozen=True, slots=True)
class TextPage:
    """Several texts on one page, whose series are chosen from one list."""

    texts: Sequence[TextValues]
    title: str = ""


def text_page(texts: Sequence[TextValues], *, title: str = "") -> str:
    """One page for several texts, whose series are chosen from one list.

    Args:
        texts: A text is shown for the series that it has.
        title: Of the page; the first text's by default.

    Returns:
        The HTML of a self-contained page.

    Raises:
        ConfigError: There is no text.
    """
    return drawing.page(TextPage(texts, title))


def text_frame(texts: Sequence[TextValues], *, title: str = "") -> str:
    """`text_page` in a frame, for a notebook cell.

    Returns:
        The HTML.
    """
    return drawing.cell(TextPage(texts, title))


def save_text_page(texts: Sequence[TextValues], path: str | Path, *, title: str = "", force: bool = False) -> Path:
    """Write `text_page` to a file, under a temporary name first.

    Returns:
        The path of the file.

    Raises:
        ConfigError: There is no text, or units or kinds differ.
        OutputExistsError: The file exists, and `force` is not given.
    """
    target = Path(path).expanduser()
    if target.is_dir() or (target.exists() and not force):
        raise OutputExistsError(
            f"page {str(path)!r} exists. Name another file, or replace it with force=True (--force)."
        )
    write_bytes(target, text_page(texts, title=title).encode("utf-8"), "page")
    return target
