"""Random gates on edges, whose parameters can be learned: hard concrete, and uniform samples around Bernoulli ones.

All functions take uniform random numbers `u` in (0, 1), so that the caller decides where randomness comes from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# As in Louizos et al. 2018 and Edge Pruning: temperature, and the interval that a sigmoid is stretched to.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def hard_concrete(log_alpha: Float[Tensor, "*edge"], u: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
    """Gates between 0 and 1 that are exactly 0 or exactly 1 with positive probability.

        clamp(sigmoid((log u - log(1 - u) + log_alpha) / beta) * (zeta - gamma) + gamma, 0, 1)

    Returns:
        The gates.

    References:
        Louizos et al. 2018, arXiv:1712.01312.
    """
    noise = u.log() - (-u).log1p()
    return (torch.sigmoid((noise + log_alpha) / BETA) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def settled(log_alpha: Float[Tensor, "*edge"]) -> Float[Tensor, "*edge"]:
    """The gates without noise, clamp(sigmoid(log_alpha) * (zeta - gamma) + gamma, 0, 1).

    Returns:
        The gates.
    """
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_gates(gates: Float[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """Open the largest gates, as many as the sum of all gates, so that the share left out is 1 - mean gate.

    Gates of equal size are opened together, never more than the sum.

    Returns:
        Which gates are open.
    """
    n, largest_first = int(gates.sum()), gates.sort(descending=True).values
    return gates > (largest_first[n] if n < len(gates) else -1.0)


def uniform_gates(
    theta: Float[Tensor, "*edge"], u: Float[Tensor, "*sample"]
) -> tuple[Float[Tensor, "*sample"], Bool[Tensor, "*sample"]]:
    """Gates that are uniform between 0 and 1 with probability theta * (1 - theta), else nearly Bernoulli(theta).

        z = 1 - clamp((u - theta) / (theta * (1 - theta)) + 1/2, 0, 1)

    Where a gate lies between 0 and 1, the mean slope of a loss over it is the difference between the edge kept and cut.

    Returns:
        The gates, and which of them lie between 0 and 1.

    References:
        Li and Janson 2024, arXiv:2409.09951.
    """
    width = (theta * (1 - theta)).clamp_min(1e-12)
    z = 1 - ((u - theta) / width + 0.5).clamp(0, 1)
    return z, (z > 0) & (z < 1)
