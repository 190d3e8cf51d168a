"""Tests against random circuits and edges: sufficiency, partial necessity and minimality.

**Sufficiency** and **partial necessity** compare the mean over examples of |s(x) - s(N)| with that of random connected
circuits of the same size. The null hypothesis is that a random one is beaten with a probability of 0.9 or less; a
binomial test over the random circuits, alternative "greater". Rejected: the circuit is better than chance. With fewer
than 29 random circuits the test cannot reject at 5 %.

- Sufficiency: the circuit C itself, x = C. Beaten is a random circuit that is farther from the model.
- Partial necessity: the model without the circuit, x = N without C. Beaten is a random circuit that the model
  misses less. (The published code returns a test object where a p-value should be.)

**Minimality**: each edge of the circuit has a larger effect than most random edges.

1. Inflate the circuit by one random path from the input to the logits, and knock one of the added edges out. The
   effect is the mean over examples of |s(with) - s(without)|. This is repeated for every random edge.
2. Knock every edge of the circuit out of the circuit, and measure the same effect.
3. For every edge, the null hypothesis is that its effect exceeds a random edge's with a probability of at least 0.9; a
   binomial test, alternative "less"; corrected over the edges (Holm or Bonferroni; the published code has none).

A rejected edge is dispensable; the circuit is minimal if no edge is rejected.

References:
    Shi et al. 2024, arXiv:2410.13032, the sufficiency test, the partial necessity test and the minimality test.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.evaluation.hypotheses.result import QUANTILE, EdgeTests, TestResult, corrected
from circuitlab.graphs.random import random_path
from circuitlab.parts import Edge, Layout


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


# A path is drawn anew if it brings no edge; a circuit that keeps all but a few edges makes that likely.
MOST_DRAWS = 10_000


def inflated(
    mask: Bool[np.ndarray, "writer reader"], layout: Layout, n: int, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "circuit writer reader"], Bool[np.ndarray, "circuit writer reader"]] | None:
    """Draw circuits with one random path more.

    Returns:
        `n` inflated circuits, and the same each without one of its added edges; None where no path adds an edge.
    """
    whole, without = [], []
    for _ in range(MOST_DRAWS):
        larger = mask.copy()
        larger[tuple(np.transpose(list(random_path(layout, rng))))] = True
        new = np.argwhere(larger & ~mask)
        if not len(new):
            continue
        smaller = larger.copy()
        smaller[tuple(new[rng.integers(len(new))])] = False
        whole.append(larger)
        without.append(smaller)
        if len(whole) == n:
            return np.stack(whole), np.stack(without)
    return None


def minimality_test(
    edges: tuple[Edge, ...],
    effects: Float[np.ndarray, " edge"],
    random_effects: Float[np.ndarray, " circuit"],
    correction: str = "holm",
    quantile: float = QUANTILE,
) -> tuple[TestResult, EdgeTests]:
    """Test every edge against random ones; see the module.

    Args:
        edges: The circuit's edges.
        effects: Effects of knocking each of them out of the circuit, 0 or more.
        random_effects: Effects of knocking random edges out of inflated circuits.
        correction: "holm" or "bonferroni".
        quantile: Share of the random edges to beat.

    Returns:
        The result of the circuit, whose p-value is the smallest of the corrected ones, and those of its edges.
    """
    n = len(random_effects)
    beaten = (effects[:, None] > random_effects).sum(1)
    p_values = np.array([quantile_p(int(k), n, "less", quantile) for k in beaten])
    found = EdgeTests(
        edges=edges,
        effect=effects,
        beats=beaten / n,
        p_value=p_values,
        p_corrected=corrected(p_values, correction),
        correction=correction,
    )
    return TestResult(
        name="minimality",
        null=f"every edge matters more to the circuit than {quantile:.0%} of random edges",
        statistic=float(found.beats.min(initial=1.0)),
        p_value=float(found.p_corrected.min(initial=1.0)),
        n=n,
        least_p=min(1.0, len(edges) * quantile_p(0, n, "less", quantile)),
        details={"n_edges": len(edges), "n_rejected": int(found.rejected.sum()), "quantile": quantile},
    ), found
