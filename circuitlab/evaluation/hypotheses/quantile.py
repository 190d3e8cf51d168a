"""Is a number beyond a quantile of what random circuits give? The binomial test that three of the five tests share."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

QUANTILE = 0.9


def quantile_p(n_beaten: int, n: int, alternative: Literal["greater", "less"], quantile: float = QUANTILE) -> float:
    """p-value of "a random one is beaten with probability `quantile`", given that `n_beaten` of `n` were.

    Args:
        n_beaten: How many were beaten.
        n: How many there were.
        alternative: "greater": the probability is higher. "less": it is lower.
        quantile: The probability under the null hypothesis.
    """
    from scipy.stats import binomtest

    return float(binomtest(n_beaten, n, quantile, alternative=alternative).pvalue)


def losses(
    circuits: Float[np.ndarray, "circuit example"], model: Float[np.ndarray, " example"]
) -> Float[np.ndarray, " circuit"]:
    """How far circuits are from the model: the mean over examples of |s(C) - s(N)|."""
    return np.asarray(np.abs(circuits - model).mean(-1))
