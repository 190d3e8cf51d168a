"""How many rows fit into one run: a memory budget in bytes, never a number of rows that a user has to guess."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from circuitlab.errors import ConfigError
from circuitlab.models.protocol import Model

# Share of the free memory that one packed run may fill, and a ceiling: larger packs are not faster on a CPU.
FREE_SHARE = 0.25
CEILING = 512 * 2**20


def default_budget(device: torch.device) -> int:
    """Bytes that a packed run may take when the user names no budget."""
    if device.type == "cuda":
        return int(FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(min(CEILING, FREE_SHARE * psutil.virtual_memory().available))


def rows_per_pack(model: Model, n_tokens: int, budget: int | None) -> int:
    """How many prompts of this length one run may hold.

    Args:
        model: Its widths say what a token costs.
        n_tokens: Prompt length.
        budget: Bytes, or None for a share of what is free.

    Raises:
        ConfigError: The budget does not hold a single prompt.
    """
    spec = model.spec
    # Alive at once in a block: the stream and its norm, q, k, v and z, an MLP's hidden layer (4 d_model, twice for gated
    # ones), the attention scores twice; at the end the logits of one position.
    per_token = 6 * spec.d_model + 4 * spec.n_heads * spec.d_head + 8 * spec.d_model + 2 * spec.n_heads * n_tokens
    bytes_per_row = (per_token * n_tokens + spec.d_vocab) * torch.finfo(model.dtype).bits // 8
    budget = default_budget(model.device) if budget is None else budget
    if budget < bytes_per_row:
        raise ConfigError(
            f"a memory budget of {budget} bytes does not hold one prompt of {n_tokens} tokens, which takes about "
            f"{bytes_per_row}. Raise budget=, or shorten the prompts."
        )
    return budget // bytes_per_row


def packs(n_rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
