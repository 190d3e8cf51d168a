"""Attention weights of chosen heads with the tokens they belong to, as a result and as `attention.json` holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuitlab.drawing import cell, draw, page
from circuitlab.errors import ConfigError, FormatError, UnknownNameError
from circuitlab.outputs.whole import write_bytes
from circuitlab.summary import Summary, plural

# Digits of a weight in files and pages; a weight has no more that anybody could see.
DIGITS = 4
SCHEMA = "circuitlab.attention/1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AttentionPatterns(Summary):
    """Attention weights of some heads on one prompt; each row of a pattern (a query) sums to 1.

    Attributes:
        tokens: The prompt.
        heads: Names of the heads.
        patterns: Their weights, query by key.
        title: What the prompt is.
        notes: Head -> a few words about it, such as its effect.
    """

    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    patterns: Float[np.ndarray, "head query key"]
    title: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def pattern(self, head: str) -> Float[np.ndarray, "query key"]:
        """The weights of one head.

        Raises:
            UnknownNameError: It is not among the heads.
        """
        UnknownNameError.check("head", head, self.heads)
        return self.patterns[self.heads.index(head)]

    def to_frame(self) -> pd.DataFrame:
        """One row a head and pair of tokens: head, query, query_token, key, key_token, weight; later keys left out."""
        head, query, key = np.nonzero(np.broadcast_to(self._sees, self.patterns.shape))
        return pd.DataFrame(
            {
                "head": [self.heads[i] for i in head],
                "query": query,
                "query_token": [self.tokens[i] for i in query],
                "key": key,
                "key_token": [self.tokens[i] for i in key],
                "weight": self.patterns[head, query, key],
            }
        )

    def to_record(self) -> dict[str, Any]:
        """What `attention.json` holds: weights to four digits, each row up to the query."""
        heads = [
            {
                "head": name,
                "note": self.notes.get(name, ""),
                "weights": [
                    [round(float(w), DIGITS) for w in (row[: at + 1] if self._causal else row)]
                    for at, row in enumerate(pattern)
                ],
            }
            for name, pattern in zip(self.heads, self.patterns, strict=True)
        ]
        return {"schema": SCHEMA, "title": self.title, "tokens": list(self.tokens), "heads": heads}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> AttentionPatterns:
        """The patterns out of `to_record`; rows end at the last token that is seen.

        Raises:
            FormatError: A field is missing or is not what it should be; the message names it.
        """
        try:
            tokens, heads = tuple(map(str, record["tokens"])), list(record["heads"])
            patterns = np.zeros((len(heads), len(tokens), len(tokens)))
            for number, head in enumerate(heads):
                if len(head["weights"]) != len(tokens):
                    raise ValueError(f"head {head['head']!r} has {len(head['weights'])} rows for {len(tokens)} tokens")
                for at, row in enumerate(head["weights"]):
                    patterns[number, at, : len(row)] = [float(weight) for weight in row]
            if not heads or not tokens or not np.isfinite(patterns).all():
                raise ValueError("there is no head, no token, or a weight that is no number")
            notes = {str(head["head"]): str(head.get("note") or "") for head in heads}
            title = str(record.get("title") or "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"attention patterns: {type(error).__name__} {error}. Needed are tokens (texts) and heads "
                "[{head, note, weights: one row a token}]."
            ) from error
        names = tuple(str(head["head"]) for head in heads)
        return cls(tokens=tokens, heads=names, patterns=patterns, title=title, notes=notes)

    def plot(self) -> Any:
        """The patterns side by side as a matplotlib `Figure`, tokens on both axes."""
        return draw(self)

    def to_html(self) -> str:
        """A self-contained interactive page: select a head, hover over a token to see its weights as query and key."""
        return page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page of `to_html` to an `.html` file; whole, or not at all.

        Raises:
            ConfigError: The name does not end in `.html`.
        """
        path = Path(path).expanduser()
        if path.suffix != ".html":
            raise ConfigError(f"{path.name!r} is no page; save attention patterns as .html, pictures by save_figure.")
        write_bytes(path, self.to_html().encode("utf-8"), "page")
        return path

    def _repr_html_(self) -> str:
        """In a notebook cell: the picture, which needs no script."""
        return cell(self)

    @property
    def _causal(self) -> bool:
        """Whether no token sees a later one."""
        return not bool(np.triu(np.abs(self.patterns), 1).any())

    @property
    def _sees(self) -> np.ndarray:
        n = len(self.tokens)
        return np.tri(n, dtype=bool) if self._causal else np.ones((n, n), dtype=bool)

    def _summary(self) -> str:
        return f"of {plural(len(self.heads), 'head')} on {plural(len(self.tokens), 'token')}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "tokens", self.tokens
        for head, pattern in zip(self.heads, self.patterns, strict=True):
            key = int(pattern[-1].argmax())
            yield head, f"{pattern[-1, key]:.3f} from the last token to {self.tokens[key]!r}"
