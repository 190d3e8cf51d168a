"""Tests against random circuits: sufficiency and partial necessity.

Both compare the mean over examples of |s(x) - s(N)| with that of random connected circuits of the same size. The null
hypothesis is that a random one is beaten with a probability of 0.9 or less; a binomial test over the random circuits,
alternative "greater". Rejected: the circuit is better than chance. With fewer than 29 random circuits the test cannot
reject at 5 %.

- **Sufficiency**: the circuit C itself, x = C. Beaten is a random circuit that is farther from the model.
- **Partial necessity**: the model without the circuit, x = N without C. Beaten is a random circuit that the model
  misses less. (The published code returns a test object where a p-value should be.)

References:
    Shi et al. 2024, arXiv:2410.13032, the sufficiency test and the partial necessity test.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from circuitlab.evaluation.hypotheses.result import TestResult

QUANTILE = 0.9


def sufficiency_test(
    circuit: Float[np.ndarray, " example"],
    random: Float[np.ndarray, "circuit example"],
    model: Float[np.ndarray, " example"],
    quantile: float = QUANTILE,
) -> TestResult:
    """Test whether a circuit is closer to the model than most random ones; see the module.

    Args:
        circuit: Score of the circuit, per example.
        random: Scores of random connected circuits of its size, on the same examples.
        model: Score of the model.
        quantile: Share of the random circuits to beat.

    Returns:
        The test; the statistic is the share of random circuits that are farther from the model.
    """
    loss, others = np.abs(circuit - model).mean(), np.abs(random - model).mean(-1)
    return _beats(
        "sufficiency", "are farther from the model", loss < others, quantile,
        loss=float(loss), loss_random_mean=float(others.mean()),
    )  # fmt: skip


def necessity_test(
    complement: Float[np.ndarray, " example"],
    random: Float[np.ndarray, "circuit example"],
    model: Float[np.ndarray, " example"],
    quantile: float = QUANTILE,
) -> TestResult:
    """Test whether the model needs a circuit more than most random ones; see the module.

    Args:
        complement: Score of the model without the circuit, per example.
        random: Scores of the model without random connected circuits of its size, on the same examples.
        model: Score of the model.
        quantile: Share of the random circuits to beat.

    Returns:
        The test; the statistic is the share of random circuits whose removal changes the model less.
    """
    effect, others = np.abs(complement - model).mean(), np.abs(random - model).mean(-1)
    return _beats(
        "partial necessity", "are missed less by the model", effect > others, quantile,
        effect=float(effect), effect_random_mean=float(others.mean()),
    )  # fmt: skip


def quantile_p(n_beaten: int, n: int, alternative: Literal["greater", "less"], quantile: float = QUANTILE) -> float:
    """p-value of "a random one is beaten with probability `quantile`", given that `n_beaten` of `n` were.

    Args:
        n_beaten: Number of beaten ones.
        n: Number of random ones.
        alternative: "greater": the probability is higher. "less": it is lower.
        quantile: The probability under the null hypothesis.

    Returns:
        The p-value of a binomial test.
    """
    from scipy.stats import binomtest

    return float(binomtest(n_beaten, n, quantile, alternative=alternative).pvalue)


def _beats(name: str, how: str, beaten: np.ndarray, quantile: float, **details: float) -> TestResult:
    n, n_beaten = len(beaten), int(beaten.sum())
    return TestResult(
        name=name,
        null=f"at most {quantile:.0%} of random circuits of its size {how}",
        statistic=n_beaten / n,
        p_value=quantile_p(n_beaten, n, "greater", quantile),
        n=n,
        least_p=quantile_p(n, n, "greater", quantile),
        for_if_rejected=True,
        details={**details, "quantile": quantile},
    )
