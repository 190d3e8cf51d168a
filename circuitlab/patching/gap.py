"""The gap that faithfulness is measured in: the metric of the clean runs less that of the empty circuit.

Faithfulness is a quotient by the mean gap. Where answers do not go with prompts, gaps of either sign cancel, what is
left of them is noise, and the edges that move it most reach any target: a circuit with every sign of success that
explains nothing. So a data set is refused where the 99 % Student interval of the mean gap holds 0. An interval of the
quotient would then be unbounded (Fieller): no number of it means anything.

Fewer than 8 pairs are not judged, because they are too few: by chance all of 7 gaps have one sign in 2 of 2^7 data
sets, more than one in a hundred; of 8 gaps in 2 of 2^8, which is fewer. A faithfulness of so few speaks of these
prompts alone.

References:
    Fieller 1954, J. R. Stat. Soc. B 16:175 (a quotient's interval is bounded where the denominator's leaves out 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab import stats
from circuitlab.errors import MetricError
from circuitlab.metrics import Metric

CONFIDENCE = 0.99
FEWEST = 8
# A mean gap below this share of the metric is rounding.
TIE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A mean gap and how sure it is.

    Attributes:
        mean: Mean over examples of m(clean) - m(empty circuit), in the metric's unit.
        standard_error: Of the mean over examples; NaN for one example.
        low: Lower end of the 99 % Student interval of the mean; minus infinity for one example.
        high: Upper end.
        n: Examples.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, clean: Float[np.ndarray, " example"], empty: Float[np.ndarray, " example"]) -> Gap:
        """The gap between two runs of the same examples.

        Returns:
            Mean, standard error and interval of the differences, in the metric's unit.
        """
        gaps = clean - empty
        interval = stats.student_interval(gaps, CONFIDENCE)
        return cls(
            mean=float(gaps.mean()),
            standard_error=float(stats.standard_error(gaps)),
            low=float(interval.low),
            high=float(interval.high),
            n=len(gaps),
        )

    @property
    def weak(self) -> bool:
        """Whether there are enough pairs to judge, and the interval holds 0."""
        return self.n >= FEWEST and self.low <= 0 <= self.high


def check_gap(
    metric: Metric,
    clean: Float[np.ndarray, " example"],
    empty: Float[np.ndarray, " example"],
    where: str = "on the corrupted prompts",
    *,
    allow_weak_gap: bool = False,
) -> Gap:
    """Refuse a data set on which there is nothing to explain.

    Args:
        metric: What was measured.
        clean: Of the whole model on the clean prompts.
        empty: Of the empty circuit.
        where: Where the second was measured, in words.
        allow_weak_gap: Refuse an exact tie only.

    Returns:
        The gap.

    Raises:
        MetricError: The means coincide, or their difference is not significant with these examples; see the module.
    """
    gap, scale = Gap.of(clean, empty), float(np.abs([clean, empty]).mean())
    if abs(gap.mean) <= TIE * max(scale, TIE):
        raise MetricError(
            f"metric {metric.name!r} is {clean.mean():.4g} on the clean and {empty.mean():.4g} {where}: with no "
            "difference there is nothing to explain. Check answers and corruption, or take another."
        )
    if gap.weak and not allow_weak_gap:
        raise MetricError(
            f"metric {metric.name!r} is {clean.mean():.4g} on the clean and {empty.mean():.4g} {where}: the mean gap "
            f"is {gap.mean:.3g}, its standard error over {gap.n} pairs {gap.standard_error:.3g}, and its "
            f"{CONFIDENCE:.0%} interval ({gap.low:.3g} to {gap.high:.3g}) holds 0, so that no share of it means "
            "anything. Check answers and corruption, or take more pairs; allow_weak_gap (--allow-weak-gap) overrides "
            "the check."
        )
    return gap
