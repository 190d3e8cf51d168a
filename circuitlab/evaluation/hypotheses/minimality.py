"""Minimality: does every edge of the circuit matter more to it than a random edge would?

1. Inflate the circuit by one random path from the input to the logits, and knock one of the edges that came with it out
   again. The effect is the mean over examples of |s(with) - s(without)|. So many random edges, so many effects.
2. Knock every edge of the circuit out of the circuit; the effect likewise.
3. For every edge, the null hypothesis is that its effect exceeds a random edge's with a probability of at least 0.9; a
   binomial test, alternative "less"; corrected over the edges (Holm or Bonferroni; the published code has none).

An edge that is rejected is one that the circuit could do without; the circuit counts as minimal if no edge is.

References:
    Shi et al. 2024, arXiv:2410.13032, the minimality test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.evaluation.hypotheses.quantile import QUANTILE, quantile_p
from circuitlab.evaluation.hypotheses.result import EdgeTests, TestResult, corrected
from circuitlab.graphs.random import random_path
from circuitlab.parts import Edge, Layout

# A path is drawn anew if it brings no edge; a circuit that keeps all but a few edges makes that likely.
MOST_DRAWS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Inflated:
    """Circuits with a random path more, and the same without one of its edges.

    Attributes:
        whole: The inflated circuits.
        without: The same, each without one edge that it has and the circuit has not.
    """

    whole: Bool[np.ndarray, "circuit writer reader"]
    without: Bool[np.ndarray, "circuit writer reader"]


def inflated(
    mask: Bool[np.ndarray, "writer reader"], layout: Layout, n: int, rng: np.random.Generator
) -> Inflated | None:
    """So many inflated circuits; None where no path brings an edge that is not there already."""
    whole, without = [], []
    for _ in range(MOST_DRAWS):
        larger = mask.copy()
        for place in random_path(layout, rng):
            larger[place] = True
        new = np.argwhere(larger & ~mask)
        if not len(new):
            continue
        smaller = larger.copy()
        smaller[tuple(new[rng.integers(len(new))])] = False
        whole.append(larger)
        without.append(smaller)
        if len(whole) == n:
            return Inflated(np.stack(whole), np.stack(without))
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
        effects: What knocking each of them out of the circuit changes, 0 or more.
        random_effects: What knocking random edges out of inflated circuits changes.
        correction: "holm" or "bonferroni".
        quantile: Which share of the random edges each should beat.

    Returns:
        The circuit's result, whose p-value is the smallest of the corrected ones, and the edges'.
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
    rejected = int(found.rejected.sum())
    p = float(found.p_corrected.min(initial=1.0))
    return TestResult(
        name="minimality",
        null=f"every edge matters more to the circuit than {quantile:.0%} of random edges",
        statistic=float(found.beats.min(initial=1.0)),
        p_value=p,
        rejected=rejected > 0,
        good=rejected == 0,
        n=n,
        least_p=min(1.0, len(edges) * quantile_p(0, n, "less", quantile)),
        details={"n_edges": len(edges), "n_rejected": rejected, "quantile": quantile},
    ), found
