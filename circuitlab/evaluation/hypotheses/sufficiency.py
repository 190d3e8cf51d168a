"""Sufficiency: is the circuit closer to the model than nine of ten random circuits of its size?

The loss of a circuit is the mean over examples of |s(C) - s(N)|. The null hypothesis is that a random connected circuit
has a greater loss with a probability of 0.9 or less; a binomial test over the random circuits, alternative "greater".
Rejected: the circuit is better than chance. With fewer than 29 random circuits the test cannot reject at 5 %.

References:
    Shi et al. 2024, arXiv:2410.13032, the sufficiency test.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlab.evaluation.hypotheses.quantile import QUANTILE, losses, quantile_p
from circuitlab.evaluation.hypotheses.result import LEVEL, TestResult


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
        quantile: Which share of the random ones it should beat.
    """
    own, others = float(losses(circuit[None], model)[0]), losses(random, model)
    beaten, n = int((own < others).sum()), len(others)
    p = quantile_p(beaten, n, "greater", quantile)
    return TestResult(
        name="sufficiency",
        null=f"at most {quantile:.0%} of random circuits of its size are farther from the model",
        statistic=beaten / n,
        p_value=p,
        rejected=p < LEVEL,
        good=p < LEVEL,
        n=n,
        least_p=quantile_p(n, n, "greater", quantile),
        details={"loss": own, "loss_random_mean": float(others.mean()), "quantile": quantile},
    )
