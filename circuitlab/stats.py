"""Statistics over examples: intervals, tests and corrections. Values come per example, means are taken here.

The bootstrap draws counts (how often each example is in a resample) and takes all means of a grid as one matrix
product: a grid of 200 cells, 100 examples and 2,000 resamples took 0.07 s, against 2.5 s with `scipy.stats.bootstrap`,
which is its oracle in the tests.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitlab.errors import ConfigError
from circuitlab.summary import Summary

N_RESAMPLES = 2000
CONFIDENCE = 0.95
VALUES_AT_ONCE = 2**20  # of the permutations of two groups


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Interval(Summary):
    """Lower and upper end of an interval, elementwise."""

    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GroupDifference(Summary):
    """Two independent groups of values, and two tests of whether they differ.

    Both are two-sided, and hold their level where the groups differ in spread and size, which the plain permutation of
    means and the test of Mann and Whitney do not. Each p-value is the larger of two: of studentised permutations, exact
    where nothing differs, and of the t distribution, right for normal values of any spread.

    Attributes:
        first_mean: Mean of the first group.
        second_mean: Mean of the second.
        difference: First minus second.
        permutation_p: Of equal means: how often a random split into groups of these sizes has a Welch statistic, the
            difference of the means by its own standard error, at least as far from 0; or Welch's p-value by the t
            distribution, if that is larger.
        u: Mann and Whitney's U of the first group.
        u_p: Of a rank-biserial of 0: the same with the statistic of Brunner and Munzel.
        rank_biserial: Effect size of U, -1 to 1: the share of pairs in which the first group's value is the larger,
            minus the share in which it is the smaller.
        n: Sizes of both groups.

    References:
        Janssen 1997, Stat. Probab. Lett. 36:9 (studentised permutation); Neubert and Brunner 2007, Comput. Stat. Data
        Anal. 51:5192 (the same of ranks).
    """

    first_mean: float
    second_mean: float
    difference: float
    permutation_p: float
    u: float
    u_p: float
    rank_biserial: float
    n: tuple[int, int]

    def to_record(self) -> dict[str, Any]:
        """For JSON.

        Returns:
            The content of a JSON object.
        """
        return asdict(self)


def group_difference(
    first: Float[np.ndarray, " one"], second: Float[np.ndarray, " other"], seed: int, n_resamples: int = 9999
) -> GroupDifference:
    """Set two independent groups of values against each other.

    Args:
        first: Values of one group, at least 2.
        second: Values of the other, at least 2.
        seed: Same seed, same permutations.
        n_resamples: How many; the smallest p-value is 1 / (n_resamples + 1).

    Returns:
        Both means, both tests and the effect size.

    Raises:
        ConfigError: A group has fewer than 2 values, or one that is not finite.
    """
    from scipy.stats import brunnermunzel, ttest_ind

    for name, group in (("first", first), ("second", second)):
        if len(group) < 2 or not np.isfinite(group).all():
            raise ConfigError(
                f"the {name} group has {len(group)} values, {int((~np.isfinite(group)).sum())} of them not finite; a "
                "spread needs at least 2 finite ones."
            )
    n_first, both = len(first), np.concatenate([first, second])
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permuted(np.broadcast_to(np.arange(len(both)), (n_resamples, len(both))), axis=1)
    splits = np.concatenate([np.arange(len(both))[None], shuffled])
    parts = np.array_split(splits, 1 + splits.size // VALUES_AT_ONCE)
    by_mean = np.concatenate([welch_statistic(both[part], n_first) for part in parts])
    by_rank = np.concatenate([brunner_munzel_statistic(both[part], n_first) for part in parts])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups without a spread: NaN or 0, and the permutations decide
        tests: Any = ttest_ind(first, second, equal_var=False), brunnermunzel(first, second)
    ranks = _ranks(both)
    u = float(ranks[:n_first].sum() - n_first * (n_first + 1) / 2)
    return GroupDifference(
        first_mean=float(first.mean()),
        second_mean=float(second.mean()),
        difference=float(first.mean() - second.mean()),
        permutation_p=max(_permutation_p(by_mean), float(np.nan_to_num(tests[0].pvalue))),
        u=u,
        u_p=max(_permutation_p(by_rank), float(np.nan_to_num(tests[1].pvalue))),
        rank_biserial=float(2 * u / (n_first * len(second)) - 1),
        n=(n_first, len(second)),
    )


def welch_statistic(values: Float[np.ndarray, "*split value"], n_first: int) -> Float[np.ndarray, "*split"]:
    """Difference of two means by its standard error; the first `n_first` values are one group, the rest the other.

    Returns:
        One number a split.
    """
    first, second = values[..., :n_first], values[..., n_first:]
    spread = first.var(-1, ddof=1) / first.shape[-1] + second.var(-1, ddof=1) / second.shape[-1]
    # What is left of equal values that are summed in another order is no spread, and no difference.
    unit = np.abs(values).max(-1) * 1e-12
    return _by(first.mean(-1) - second.mean(-1), np.sqrt(spread), unit)


def brunner_munzel_statistic(values: Float[np.ndarray, "*split value"], n_first: int) -> Float[np.ndarray, "*split"]:
    """Difference of two mean ranks by its standard error, up to a factor that depends on the sizes alone.

    Returns:
        One number a split.
    """
    ranks, squares = _ranks(values), np.zeros(values.shape[:-1])
    groups = (slice(None, n_first), slice(n_first, None))
    for group in groups:
        placed = ranks[..., group] - _ranks(values[..., group])
        squares = squares + placed.var(-1, ddof=1) * placed.shape[-1]
    means = [ranks[..., group].mean(-1) for group in groups]
    return _by(means[0] - means[1], np.sqrt(squares), np.asarray(1e-9))


def _by(
    difference: Float[np.ndarray, "*split"], spread: Float[np.ndarray, "*split"], unit: Float[np.ndarray, "*#split"]
) -> Float[np.ndarray, "*split"]:
    """A difference by its spread: infinite where there is no spread, 0 where there is no difference."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(spread > unit, difference / spread, np.sign(difference) * np.inf)
    return np.where(np.abs(difference) <= unit, 0.0, found)


def _permutation_p(statistics: Float[np.ndarray, " split"]) -> float:
    """Share of the splits, the observed one (the first) among them, that are at least as far from 0 as it is."""
    sizes = np.abs(statistics)
    return float((sizes >= sizes[0] * (1 - 1e-9)).mean())


def _ranks(values: Float[np.ndarray, "*split value"]) -> Float[np.ndarray, "*split value"]:
    """Ranks from 1; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def ratio_of_means(
    numerator: Float[np.ndarray, "*cell example"], denominator: Float[np.ndarray, "*#cell example"]
) -> Float[np.ndarray, "*cell"]:
    """Mean over examples of one, divided by the mean of the other: the field's faithfulness, means first.

    Returns:
        One ratio a cell.
    """
    return np.asarray(numerator.mean(-1) / denominator.mean(-1))


def ratio_interval(
    numerator: Float[np.ndarray, "*cell example"],
    denominator: Float[np.ndarray, "*#cell example"],
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """Bootstrap percentile interval of `ratio_of_means`, resampling examples as pairs of both.

    Args:
        numerator: Values per example.
        denominator: What each cell is divided by, per example.
        seed: Same seed, same resamples.
        n_resamples: How many.

    Returns:
        The 95 % interval of every cell. It speaks of the choice of prompts, not of the choice of circuit.
    """
    counts = _resample_counts(denominator.shape[-1], seed, n_resamples)
    with np.errstate(invalid="ignore"):  # 0 / 0: a resample without a single example that has the span of this cell
        ratios = (numerator @ counts) / (denominator @ counts)
    return _percentiles(ratios)


def mean_interval(values: Float[np.ndarray, "*cell example"], seed: int, n_resamples: int = N_RESAMPLES) -> Interval:
    """Bootstrap percentile interval of the mean over examples.

    Returns:
        The 95 % interval of every cell.
    """
    counts = _resample_counts(values.shape[-1], seed, n_resamples)
    return _percentiles(values @ counts / values.shape[-1])


def standard_error(values: Float[np.ndarray, "*cell example"], single: float = np.nan) -> Float[np.ndarray, "*cell"]:
    """Standard error of the mean over examples.

    Args:
        values: One value an example.
        single: What is returned for a single example, which has no spread.

    Returns:
        One number a cell.
    """
    n = values.shape[-1]
    return np.asarray(values.std(-1, ddof=1) / np.sqrt(n)) if n > 1 else np.full(values.shape[:-1], single)


class RunningMean:
    """Mean and spread over examples that come in batches, of arrays or tensors alike.

    Args:
        where: Which values count; the others are taken as 0. All by default.

    References:
        Chan, Golub and LeVeque 1983, Am. Stat. 37:242: batches are merged without subtracting large squares.
    """

    def __init__(self, where: Any = 1.0) -> None:
        self._where = where
        self.n: Any = None
        self._sum: Any = 0.0
        self._squares: Any = 0.0  # squared distances from the mean

    def add(self, values: Any, there: Any = None) -> None:
        """Take in one batch `[example, ...]`; values that are not `there`, `[example, ...]`, are 0 and not counted."""
        values = values * self._where
        n, total = (len(values) if there is None else there.sum(0)), values.sum(0)
        away = values - total / n
        squares = ((away if there is None else away * there) ** 2).sum(0)
        if self.n is not None:
            squares = squares + self._squares + (total / n - self.mean) ** 2 * self.n * n / (self.n + n)
            n = self.n + n
        self.n, self._sum, self._squares = n, self._sum + total, squares

    @property
    def mean(self) -> Any:
        """Mean over all examples so far."""
        return self._sum / self.n

    @property
    def deviation(self) -> Any:
        """Standard deviation of these very examples: divided by their number."""
        return (self._squares / self.n) ** 0.5

    @property
    def standard_error(self) -> Any:
        """Standard error of the mean; 0 for a single example."""
        return (self._squares / max(1, self.n - 1) / self.n) ** 0.5


def student_interval(values: Float[np.ndarray, " example"], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean over examples; the whole line for one example, which has no spread.

    Returns:
        The interval.
    """
    from scipy.special import stdtrit

    n, mean = len(values), values.mean()
    if n < 2:
        return Interval(np.array(-np.inf), np.array(np.inf))
    half = stdtrit(n - 1, (1 + confidence) / 2) * standard_error(values)
    return Interval(np.asarray(mean - half), np.asarray(mean + half))


def sign_flip_p(
    differences: Float[np.ndarray, "*cell example"], seed: int, n_resamples: int = N_RESAMPLES
) -> Float[np.ndarray, "*cell"]:
    """Two-sided sign-flip permutation p-value of the mean difference; not corrected for the number of cells.

    Exact where there are no more than `n_resamples` ways to flip the signs.

    Args:
        differences: Paired differences of n examples, symmetric about 0 if nothing happens.
        seed: Same seed, same flips.
        n_resamples: How many flips are drawn, at most.

    Returns:
        The share of all 2**n flips with a mean at least as far from 0; of drawn flips, (1 + their number with such a
        mean) / (1 + number of flips).
    """
    n = differences.shape[-1]
    exact = 2**n <= n_resamples
    if exact:
        signs = (np.arange(2**n) >> np.arange(n)[:, None]) & 1
    else:
        signs = np.random.default_rng([seed, 1]).integers(0, 2, (n, n_resamples))
    flips = signs * 2.0 - 1.0
    observed = np.abs(differences.mean(-1))[..., None]
    flipped = np.abs(differences @ flips) / n
    # Equal means must count as equal although they were summed in another order.
    slack = 1e-9 * np.maximum(1e-30, np.abs(differences).mean(-1))[..., None]
    more = 0 if exact else 1  # the flip that was observed is among all of them, not among drawn ones
    return np.asarray((more + (flipped >= observed - slack).sum(-1)) / (more + flips.shape[1]))


def holm(p_values: Float[np.ndarray, "*cell"]) -> Float[np.ndarray, "*cell"]:
    """Holm's correction over all cells: adjusted p-values that control the family-wise error rate.

    Returns:
        Adjusted p-values.
    """
    flat = p_values.ravel()
    order = np.argsort(flat, kind="stable")
    factors = len(flat) - np.arange(len(flat))
    adjusted = np.minimum(1.0, np.maximum.accumulate(flat[order] * factors))
    out = np.empty_like(flat)
    out[order] = adjusted
    return out.reshape(p_values.shape)


def benjamini_hochberg(p_values: Float[np.ndarray, "*cell"]) -> Float[np.ndarray, "*cell"]:
    """Benjamini and Hochberg's correction over all cells: adjusted p-values that control the false discovery rate.

    Returns:
        Adjusted p-values.
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values.ravel()).reshape(p_values.shape)


def _resample_counts(n: int, seed: int, n_resamples: int) -> Float[np.ndarray, "example resample"]:
    rng = np.random.default_rng([seed, 0])
    return rng.multinomial(n, np.full(n, 1.0 / n), size=n_resamples).T.astype(np.float64)


def _percentiles(values: Float[np.ndarray, "*cell resample"]) -> Interval:
    tail = (1.0 - CONFIDENCE) / 2
    quantile = np.nanquantile if np.isnan(values).any() else np.quantile
    low, high = quantile(values, [tail, 1.0 - tail], axis=-1)
    return Interval(np.asarray(low), np.asarray(high))
