"""The rate at which this machine multiplies matrices, in this process, at the shapes that a block of the model uses.

By `torch.mm` and by what the library multiplies with, since on some processors these differ much; the quicker one is
the machine's rate. `torch.mm` writes into memory that is already there, so that nothing but the multiplication counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from circuitlab.models.products import product

# Tokens in one product. A sweep packs several thousand; the quickest of these is the machine's rate.
TOKENS = (1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Products:
    """The four products of a block with a GPT-2 MLP.

    Attributes:
        run: Multiplies once.
        operations: How many operations that is, two for each multiplication and addition.
    """

    run: Callable[[], None]
    operations: int


def block_products(
    d_model: int, n_tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32, *, ours: bool = False
) -> Products:
    """[tokens, d] x [d, 3d], x [d, d], x [d, 4d] and [tokens, 4d] x [4d, d]; `ours`: as the library multiplies."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(d_model, 3 * d_model), (d_model, d_model), (d_model, 4 * d_model), (4 * d_model, d_model)]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    triples = [(drawn(n_tokens, a), drawn(a, b), drawn(n_tokens, b)) for a, b in shapes]

    def run() -> None:
        for left, right, out in triples:
            if ours:
                product(left, right)
            else:
                torch.mm(left, right, out=out)

    return Products(run, sum(2 * n_tokens * a * b for a, b in shapes))
