"""Minimality: each edge of the circuit has a larger effect than most random edges.

1. Inflate the circuit by one random path from the input to the logits, and knock one of the added edges out. The
   effect is the mean over examples of |s(with) - s(without)|. This is repeated for every random edge.
2. Knock every edge of the circuit out of the circuit, and measure the same effect.
3. For every edge, the null hypothesis is that its effect exceeds a random edge's with a probability of at least 0.9; a
   binomial test, alternative "less"; corrected over the edges (Holm or Bonferroni; the published code has none).

A rejected edge is dispensable; the circuit is minimal if no edge is rejected.

References:
    Shi et al. 2024, arXiv:2410.13032, the minimality test.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.evaluation.hypotheses.chance import QUANTILE, quantile_p
from circuitlab.evaluation.hypotheses.result import EdgeTests, TestResult, corrected
from circuitlab.graphs.random import random_path
from circuitlab.parts import Edge, Layout

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
