"""Attention patterns as `attention.json` holds them, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitlab.errors import FormatError
from circuitlab.viz import attention_figure, figure_bytes, visible_token

DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionData:
    """Patterns of some heads on one prompt.

    Attributes:
        title: The prompt.
        tokens: Its tokens.
        heads: Names of the heads.
        notes: Head -> a few words about it.
        patterns: Their weights.
    """

    title: str
    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    notes: Mapping[str, str]
    patterns: Float[np.ndarray, "head query key"]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> AttentionData:
        """The patterns out of a record; rows end at the last token that is seen.

        Raises:
            FormatError: A field is missing or is not what it should be; the message names it.
        """
        try:
            tokens, heads = [str(token) for token in record["tokens"]], list(record["heads"])
            patterns = np.zeros((len(heads), len(tokens), len(tokens)))
            for number, head in enumerate(heads):
                if len(head["weights"]) != len(tokens):
                    raise ValueError(f"head {head['head']!r} has {len(head['weights'])} rows for {len(tokens)} tokens")
                for at, row in enumerate(head["weights"]):
                    patterns[number, at, : len(row)] = [float(weight) for weight in row]
            if not heads or not tokens or not all(map(math.isfinite, patterns.flat)):
                raise ValueError("there is no head, no token, or a weight that is no number")
            names = tuple(str(head["head"]) for head in heads)
            notes = {str(head["head"]): str(head.get("note") or "") for head in heads}
            title = str(record.get("title") or "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"attention patterns: {type(error).__name__} {error}. Needed are tokens (texts) and heads "
                "[{head, note, weights: one row a token}]."
            ) from error
        return cls(title=title, tokens=tuple(tokens), heads=names, notes=notes, patterns=patterns)

    def png(self) -> bytes:
        """The picture of the patterns."""
        figure = attention_figure(self.tokens, self.heads, self.patterns, title=self.title, notes=self.notes)
        return figure_bytes(figure, "png")

    def for_script(self) -> dict[str, Any]:
        """What the page's script reads: tokens as a reader sees them, whole rows of weights."""
        heads = [
            {"head": head, "note": self.notes.get(head, ""), "weights": pattern.round(DIGITS).tolist()}
            for head, pattern in zip(self.heads, self.patterns, strict=True)
        ]
        return {"tokens": [visible_token(token) for token in self.tokens], "heads": heads}
