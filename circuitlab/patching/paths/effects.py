"""What path patching gives back: one value per sender and example, and everything that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuitlab import stats
from circuitlab.errors import UnknownNameError
from circuitlab.parts import Node, Reader
from circuitlab.patching.grid import CORRECTIONS
from circuitlab.summary import Summary, largest, plural

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PathEffects(Summary):
    """Effects of senders through the paths to a set of receivers, each sender patched alone.

    Attributes:
        senders: Whose output was swapped, in the order they were asked for.
        receivers: Who heard of it, all together.
        frozen: What of the heads between was held: "heads", "patterns" or "none".
        freeze_mlps: Whether the MLPs between were held.
        direction: "noise": corrupted in the clean run; "denoise": clean in the corrupted run.
        metric: Name of the metric.
        unit: Its unit.
        per_example: How much the paths help: m(clean) - m(clean with them corrupted), or m(corrupted with them clean) -
            m(corrupted); turned for metrics where less is better.
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
    def values(self) -> Float[np.ndarray, " sender"]:
        """Mean over examples, in the metric's unit; positive: the paths help."""
        return np.asarray(self.per_example.mean(-1))

    @property
    def shares(self) -> Float[np.ndarray, " sender"]:
        """`values` as a share of the clean-corrupted difference (ratio of means)."""
        return self.values / abs(float((self.clean - self.corrupt).mean()))

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        return stats.mean_interval(self.per_example, self.seed)

    @property
    def p_values(self) -> Float[np.ndarray, " sender"]:
        """Two-sided sign-flip p-values of "the paths do nothing", not corrected for the number of senders."""
        return stats.sign_flip_p(self.per_example, self.seed)

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """One row a sender: sender, receivers, value, share, ci_low, ci_high, p_value, n.

        Args:
            correction: "holm" or "benjamini-hochberg": `p_value` is then corrected for the number of senders.

        Raises:
            UnknownNameError: No such correction.
        """
        import pandas as pd

        if correction is not None and correction not in CORRECTIONS:
            raise UnknownNameError.of("correction", correction, CORRECTIONS)
        interval = self.interval
        return pd.DataFrame(
            {
                "sender": [node.name for node in self.senders],
                "receivers": " ".join(reader.name for reader in self.receivers),
                "value": self.values,
                "share": self.shares,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "p_value": self.p_values if correction is None else CORRECTIONS[correction](self.p_values),
                "n": self.per_example.shape[1],
            }
        )

    def _summary(self) -> str:
        return (
            f"by {self.direction}: {plural(len(self.senders), 'sender')}, {plural(self.per_example.shape[-1], 'pair')}"
        )

    def _facts(self) -> Iterable[tuple[str, object]]:
        names = [getattr(one, "name", str(one)) for one in self.senders]
        yield "receivers", " ".join(getattr(one, "name", str(one)) for one in self.receivers)
        yield "metric", f"{self.metric}: clean {self.clean.mean():.4g}, corrupted {self.corrupt.mean():.4g}"
        yield from largest(self.per_example.mean(-1), lambda number: names[number])
