"""Areas over the size of a circuit: CPR and CMD, as MIB computes them.

Sizes are shares of all edges, the axis is linear, there is no point at 0: a perfect curve has CPR 0.999 and CMD 0.
"""

from collections.abc import Sequence
from itertools import pairwise

# MIB evaluates these shares of the edges; the number of edges is cut to a whole number.
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def mib_sizes(n_edges_total: int) -> tuple[int, ...]:
    """Nominal numbers of edges at MIB's shares."""
    return tuple(int(share * n_edges_total) for share in MIB_SHARES)


def cpr(faithfulness: Sequence[float]) -> float:
    """Circuit performance ratio: area under the faithfulness of circuits ranked by signed score.

    Args:
        faithfulness: One value per share of `MIB_SHARES`.

    References:
        Mueller et al. 2025 (MIB), section 3.1, arXiv:2504.13151.
    """
    return _area(faithfulness)


def cmd(faithfulness: Sequence[float]) -> float:
    """Circuit-model distance: area between the faithfulness of circuits ranked by absolute score and 1.

    Args:
        faithfulness: One value per share of `MIB_SHARES`.

    References:
        Mueller et al. 2025 (MIB), section 3.1, arXiv:2504.13151.
    """
    return _area([abs(1 - value) for value in faithfulness])


def _area(values: Sequence[float]) -> float:
    if len(values) != len(MIB_SHARES):
        raise ValueError(f"an area needs {len(MIB_SHARES)} values, one for each of MIB's shares; got {len(values)}.")
    widths = [b - a for a, b in pairwise(MIB_SHARES)]
    return sum(w * (a + b) / 2 for w, (a, b) in zip(widths, pairwise(values), strict=True))
