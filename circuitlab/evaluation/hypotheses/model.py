"""Tests against the model: equivalence, and independence of what is outside of the circuit.

**Equivalence**: the circuit scores above the model about as often as below. With D = s(C) - s(N) per example, the null
hypothesis is |P(D > 0) - 1/2| < e. The statistic is t = |share of D > 0, less 1/2|, and

    p = sum of Binom(k; n, 1/2 + e) over all k with |k/n - 1/2| >= t.

Rejected: circuit and model are not equivalent. An example on which both are equal counts half, so that the model is
equivalent to itself. The test depends on signs and not on sizes: a circuit that is always slightly below the model is
rejected like one that is far below; compare with the faithfulness. (The published code takes the mean of D instead of
the share; its documentation and the paper have the share.)

**Independence**: the scores of the model without the circuit do not depend on those of the model. The statistic is the
Hilbert-Schmidt independence criterion with Gaussian kernels whose width is the median distance between two examples,

    HSIC = trace(K H L H) / (n - 1)^2,    H = I - 1/n,

and p the share of permutations of one side with a statistic at least as large: (1 + count) / (1 + permutations).

Rejected: the circuit is incomplete. It is a demanding test: under "corrupt" the complement carries the corrupted
prompt, whose answer is the clean prompt's distractor, so that its scores can depend on the model's although it does not
perform the task. This does not happen under ablation by zero or means. Constant scores are independent of anything (p =
1). The published code takes one width for both sides and can give p = 0.

References:
    Shi et al. 2024, arXiv:2410.13032, the equivalence test and the independence test; Gretton et al. 2007, "A kernel
    statistical test of independence".
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


N_PERMUTATIONS = 1000


def independence_test(
    complement: Float[np.ndarray, " example"],
    model: Float[np.ndarray, " example"],
    seed: int,
    n_permutations: int = N_PERMUTATIONS,
) -> TestResult:
    """Test whether the scores of the complement are independent of the model's; see the module.

    Args:
        complement: Score of the model without the circuit, per example.
        model: Score of the model on the same examples.
        seed: Random seed of the permutations.
        n_permutations: Number of permutations; the smallest p-value is 1 / (n_permutations + 1).

    Returns:
        The test; the statistic is the criterion.
    """
    n = len(model)
    one, other = _centred(_kernel(complement)), _kernel(model)
    statistic = _hsic(one, other)
    rng = np.random.default_rng([seed, 11])
    orders = (rng.permutation(n) for _ in range(n_permutations))
    permuted = np.array([_hsic(one, other[np.ix_(order, order)]) for order in orders])
    # Equal arrangements must count as equal although they were summed in another order.
    p = float((1 + (permuted >= statistic * (1 - 1e-9)).sum()) / (1 + n_permutations))
    return TestResult(
        name="independence",
        null="the scores of the model without the circuit are independent of the model's",
        statistic=statistic,
        p_value=p,
        n=n,
        least_p=1 / (1 + n_permutations),
        details={"n_permutations": n_permutations},
    )


def hsic(a: Float[np.ndarray, " example"], b: Float[np.ndarray, " example"]) -> float:
    """The Hilbert-Schmidt independence criterion of two sets of scores.

    Returns:
        0 or more; 0 where one of them is constant.
    """
    return _hsic(_centred(_kernel(a)), _kernel(b))


def _hsic(centred: np.ndarray, other: np.ndarray) -> float:
    # trace(H K H L) with both symmetric; centring one side suffices.
    return float((centred * other).sum() / max(1, len(other) - 1) ** 2)


def _kernel(values: Float[np.ndarray, " example"]) -> Float[np.ndarray, "example example"]:
    distances = np.abs(values[:, None] - values[None, :])
    width = float(np.median(distances[np.triu_indices(len(values), 1)])) if len(values) > 1 else 0.0
    if width == 0:  # more than half of the pairs are equal: compare by equality
        return (distances == 0).astype(np.float64)
    return np.exp(-(distances**2) / (2 * width**2))


def _centred(kernel: Float[np.ndarray, "example example"]) -> Float[np.ndarray, "example example"]:
    rows = kernel.mean(0)
    return kernel - rows - rows[:, None] + rows.mean()
