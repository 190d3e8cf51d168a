"""Equivalence: the circuit scores above the model about as often as below.

With D = s(C) - s(N) per example, the null hypothesis is |P(D > 0) - 1/2| < e: neither scores higher much more often
than the other. The statistic is t = |share of D > 0, less 1/2|, and

    p = sum of Binom(k; n, 1/2 + e) over all k with |k/n - 1/2| >= t.

Rejected: circuit and model are not equivalent. An example on which both are equal counts half, so that the model is
equivalent to itself. The test depends on signs and not on sizes: a circuit that is always slightly below the model is
rejected like one that is far below; compare with the faithfulness.

The published code takes the mean of D instead of the share (its documentation and the paper have the share).

References:
    Shi et al. 2024, arXiv:2410.13032, the equivalence test.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlab.evaluation.hypotheses.result import TestResult

EPSILON = 0.1
# Differences below this share of the scores' size are rounding: two orders of summation gave 1e-6 in float32.
TIE = 1e-5


def equivalence_test(
    circuit: Float[np.ndarray, " example"], model: Float[np.ndarray, " example"], epsilon: float = EPSILON
) -> TestResult:
    """Test whether a circuit scores above the model about half of the time; see the module.

    Args:
        circuit: Score of the circuit, per example.
        model: Score of the model on the same examples.
        epsilon: Largest distance of the probability from a half, above 0 and below a half.

    Returns:
        The test; the statistic is the distance of the share from a half.
    """
    difference = circuit - model
    scale = TIE * max(float(np.abs(model).mean()), float(np.abs(circuit).mean()), 1e-30)
    ahead, ties = int((difference > scale).sum()), int((np.abs(difference) <= scale).sum())
    n = len(difference)
    t = abs((ahead + ties / 2) / n - 0.5)
    p = equivalence_p(n, t, epsilon)
    return TestResult(
        name="equivalence",
        null=f"the circuit is ahead of the model in half of the examples, to within {epsilon:g}",
        statistic=t,
        p_value=p,
        n=n,
        least_p=equivalence_p(n, 0.5, epsilon),
        details={"share_ahead": ahead / n, "share_equal": ties / n, "epsilon": epsilon},
    )


def equivalence_p(n: int, t: float, epsilon: float) -> float:
    """Probability of a share at least `t` from a half among `n` draws with probability 1/2 + epsilon.

    Returns:
        The p-value of the equivalence test.
    """
    from scipy.stats import binom

    k = np.arange(n + 1)
    out = np.abs(k / n - 0.5) >= t - 1e-12
    return float(min(1.0, binom.pmf(k[out], n, 0.5 + epsilon).sum()))
