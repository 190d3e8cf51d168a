"""Partial necessity: does the model lose more without the circuit than without nine of ten random circuits of its size?

The effect of a knock-out is the mean over examples of |s(N without C) - s(N)|. The null hypothesis is that a random
connected circuit has a smaller effect with a probability of 0.9 or less; a binomial test, alternative "greater".
Rejected: the circuit is needed more than chance would have it. (The published code returns a test object where a
p-value should stand.)

References:
    Shi et al. 2024, arXiv:2410.13032, the partial necessity test.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlab.evaluation.hypotheses.quantile import QUANTILE, losses, quantile_p
from circuitlab.evaluation.hypotheses.result import LEVEL, TestResult


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
        quantile: Which share of the random ones it should beat.
    """
    own, others = float(losses(complement[None], model)[0]), losses(random, model)
    beaten, n = int((own > others).sum()), len(others)
    p = quantile_p(beaten, n, "greater", quantile)
    return TestResult(
        name="partial necessity",
        null=f"at most {quantile:.0%} of random circuits of its size are missed less by the model",
        statistic=beaten / n,
        p_value=p,
        rejected=p < LEVEL,
        good=p < LEVEL,
        n=n,
        least_p=quantile_p(n, n, "greater", quantile),
        details={"effect": own, "effect_random_mean": float(others.mean()), "quantile": quantile},
    )
