"""What path patching gives back: one value per sender and example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuitlab.parts import Node, Reader
from circuitlab.patching.effects import Effects
from circuitlab.summary import largest, plural

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PathEffects(Effects):
    """Effects of senders through the paths to a set of receivers, each sender patched alone.

    Columns of `to_frame`: sender, receivers, value, share, ci_low, ci_high, p_value, n.

    Attributes:
        senders: Whose output was replaced, in the given order.
        receivers: Whose input was patched, all together.
        frozen: What of the heads between was frozen: "heads", "patterns" or "none".
        freeze_mlps: Whether the MLPs between were frozen.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        per_example: How much the paths help: m(clean) - m(clean with them corrupted), or m(corrupted with them clean) -
            m(corrupted); negated for metrics where less is better.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run.
        seed: Seed of intervals and p-values.
    """

    senders: tuple[Node, ...]
    receivers: tuple[Reader, ...]
    frozen: str
    freeze_mlps: bool
    direction: str
    metric: str
    unit: str
    per_example: Float[np.ndarray, "sender example"]
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    seed: int = 0

    @property
    def shares(self) -> Float[np.ndarray, " sender"]:
        """`values` as a share of the clean-corrupted difference (ratio of means)."""
        return self.values / abs(float((self.clean - self.corrupt).mean()))

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """As of `Effects`, with the shares."""
        frame = Effects.to_frame(self, correction)
        frame.insert(3, "share", self.shares)
        return frame

    def _labels(self) -> dict[str, Any]:
        receivers = " ".join(reader.name for reader in self.receivers)
        return {"sender": [node.name for node in self.senders], "receivers": receivers}

    def _summary(self) -> str:
        return (
            f"by {self.direction}: {plural(len(self.senders), 'sender')}, {plural(self.per_example.shape[-1], 'pair')}"
        )

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "receivers", " ".join(one.name for one in self.receivers)
        yield "metric", self._ends
        yield from largest(self.per_example.mean(-1), lambda number: self.senders[number].name)
