"""Gaussian noise that depends on the seed, the activation and the example, and on nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.digests import sha256
from circuitlab.patching.runs.reference import Place


def normal(
    like: Float[Tensor, "batch ..."], seed: int, place: Place, index: Int[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Standard normal noise for one activation, decided by the seed, the activation and the example's place alone.

    Args:
        like: Shape, device and dtype; the draws are float32 and made on the CPU, whatever these are.
        seed: The seed.
        place: Which activation.
        index: Place of each example in its data set.

    Returns:
        The draws, in the shape of `like`.
    """
    rows = []
    for example in index.tolist():
        digest = sha256(f"{seed}/{place[0]}/{place[1]}/{example}")
        generator = torch.Generator().manual_seed(int(digest[:16], 16) >> 1)
        rows.append(torch.randn(like.shape[1:], generator=generator, dtype=torch.float32))
    return torch.stack(rows).to(like)
