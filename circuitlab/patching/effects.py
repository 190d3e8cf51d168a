"""What patching gives back: one value per patch and example, and the statistics that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from circuitlab import stats
from circuitlab.drawing import draw
from circuitlab.errors import UnknownNameError
from circuitlab.result import Result

FRAME_COLUMNS = ("value", "ci_low", "ci_high", "p_value", "n")
CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "holm": stats.holm,
    "benjamini-hochberg": stats.benjamini_hochberg,
}


def check_correction(name: str | None) -> None:
    """Refuse a correction that does not exist; None means no correction.

    Raises:
        UnknownNameError: No such correction.
    """
    if name is not None and name not in CORRECTIONS:
        raise UnknownNameError.of("correction", name, CORRECTIONS)


class Means(Result):
    """Several quantities, each with one value per example. Data classes that derive from it declare the fields.

    Attributes:
        per_example: The values; NaN where an example has none.
        seed: Seed of the intervals.
    """

    __slots__ = ()

    per_example: Float[np.ndarray, "*cell example"]
    seed: int

    @property
    def values(self) -> Float[np.ndarray, "*cell"]:
        """Mean over the examples that have a value."""
        return stats.ratio_of_means(self._numerator, self._denominator)

    @property
    def interval(self) -> stats.Interval:
        """95 % bootstrap interval of `values` over examples."""
        return stats.ratio_interval(self._numerator, self._denominator, self.seed)

    @property
    def n(self) -> Int[np.ndarray, "*cell"]:
        """How many examples each value is a mean of."""
        return self._present.sum(-1)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity; the columns are listed with the class.

        Returns:
            The table.
        """
        interval = self.interval
        numbers = {"value": self.values, "ci_low": interval.low, "ci_high": interval.high, "n": self.n}
        return pd.DataFrame(self._labels() | {name: np.ravel(cells) for name, cells in numbers.items()})

    def plot(self) -> Any:
        """The values as a matplotlib `Figure`.

        Returns:
            The figure.
        """
        return draw(self)

    def _labels(self) -> dict[str, Any]:
        """What each quantity is: the first columns of `to_frame`."""
        raise NotImplementedError

    @property
    def _present(self) -> np.ndarray:
        return ~np.isnan(self.per_example)

    @property
    def _numerator(self) -> np.ndarray:
        return np.where(self._present, self.per_example, 0.0)

    @property
    def _denominator(self) -> np.ndarray:
        return self._present.astype(float)


class Effects(Means):
    """Effects of patches, each run alone. Data classes that derive from it declare the fields.

    Attributes:
        metric: Name of the metric.
        per_example: One value per patch and example; NaN where an example lacks the tokens of the patch.
        clean: Metric of the clean run.
        corrupt: Metric of the corrupted run; None for pairs without corrupted prompts.
        empty: Metric of the empty circuit, for pairs without corrupted prompts.
        seed: Seed of intervals and p-values.
    """

    __slots__ = ()

    metric: Any
    clean: Float[np.ndarray, "*metric example"]
    corrupt: Float[np.ndarray, "*metric example"] | None
    empty: Float[np.ndarray, "*metric example"] | None = None  # of results that can be without a corrupted run

    @property
    def unit_end(self) -> Float[np.ndarray, "*metric example"]:
        """The metric where a share of the gap is 0: of the corrupted run, or of the empty circuit without one."""
        found = self.empty if self.corrupt is None else self.corrupt
        assert found is not None, "an effect has one of the two"
        return found

    @property
    def unit_end_name(self) -> str:
        """What `unit_end` is of, in words."""
        return "empty circuit" if self.corrupt is None else "corrupted run"

    @property
    def p_values(self) -> Float[np.ndarray, "*patch"]:
        """Two-sided sign-flip p-values of "the patch has no effect", not corrected for the number of patches."""
        return stats.sign_flip_p(self._change, self.seed)

    def corrected_p_values(self, correction: str = "holm") -> Float[np.ndarray, "*patch"]:
        """`p_values` corrected for the number of patches, those of each metric by themselves.

        Args:
            correction: "holm" controls the chance of any false finding, "benjamini-hochberg" the share of false ones
                among the findings.

        Returns:
            Values of the shape of `p_values`.

        Raises:
            UnknownNameError: No such correction.
        """
        check_correction(correction)
        found = [CORRECTIONS[correction](p_values) for p_values in self._by_metric(self.p_values)]
        return np.reshape(found, self.per_example.shape[:-1])

    def to_frame(self, correction: str | None = None) -> pd.DataFrame:
        """One row a patch; the columns are listed with the class.

        Args:
            correction: "holm" or "benjamini-hochberg": `p_value` is then corrected (see `corrected_p_values`).

        Returns:
            The table.

        Raises:
            UnknownNameError: No such correction.
        """
        p_values = self.p_values if correction is None else self.corrected_p_values(correction)
        frame = Means.to_frame(self)
        frame.insert(len(frame.columns) - 1, "p_value", p_values.ravel())
        return frame

    def _by_metric(self, values: np.ndarray) -> np.ndarray:
        return values[None]

    @property
    def _ends(self) -> str:
        other = "empty circuit" if self.corrupt is None else "corrupted"
        return f"{self.metric}: clean {self.clean.mean():.4g}, {other} {self.unit_end.mean():.4g}"

    @property
    def _change(self) -> np.ndarray:
        """What the patch changes, per example; 0 where it is not measured."""
        return self._numerator
