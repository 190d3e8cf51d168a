"""Attention patterns as `attention.json` holds them, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitlab.attribution.patterns import AttentionPatterns
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
        found = AttentionPatterns.of_record(record)
        return cls(**{name: getattr(found, name) for name in cls.__dataclass_fields__})

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
