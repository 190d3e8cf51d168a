"""Where a change can come from and where it can go: which tokens a patch can change.

Under causal attention both prompts are the same before their first difference, a patched token changes nothing before
it, and no token after the answer reaches the metric. Otherwise every token sees every other: all of them count, and the
answer may be anywhere among them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.row_steps import Rows
from circuitlab.parts import ModelSpec


def tokens_that_differ(spec: ModelSpec, batch: PairBatch) -> Bool[Tensor, "batch seq"]:
    """Tokens at which the two runs of a pair can differ.

    Under causal attention they begin at the first different token: both prompts are the same before it, whatever the
    rounding of their kernels.

    Returns:
        A mask of the tokens.
    """
    if not spec.causal:
        return torch.ones_like(batch.clean, dtype=torch.bool)
    return (batch.clean != batch.corrupted).cumsum(1) > 0


def tokens_that_matter(spec: ModelSpec, batch: PairBatch, *, from_difference: bool) -> Bool[Tensor, "batch seq"]:
    """Tokens whose change can reach the answer.

    Args:
        spec: The model's shape; whether attention is causal.
        batch: The prompts.
        from_difference: The replacement is the other prompt's value, so that only `tokens_that_differ` change.

    Returns:
        A mask of the tokens.
    """
    position = torch.arange(batch.n_tokens, device=batch.clean.device)
    inside = (position <= batch.answer_at[:, None]) | (not spec.causal)
    return inside & tokens_that_differ(spec, batch) if from_difference else inside


def rows_from(spec: ModelSpec, batch: PairBatch, example: Int[Tensor, " row"], first: Int[Tensor, " row"]) -> Rows:
    """Rows of examples that a patch changes from a token on: up to the answer, or the whole prompts.

    Args:
        spec: The model's shape; whether attention is causal.
        batch: The prompts.
        example: Which example each row is a variant of.
        first: The first token that the patch itself changes.

    Returns:
        One row a patched example.
    """
    answer = batch.answer_at[example]
    if spec.causal:
        return Rows(example=example, first=first, last=answer, answer=answer)
    return Rows(
        example=example, first=torch.zeros_like(first), last=torch.full_like(first, batch.n_tokens - 1), answer=answer
    )


def rows_at_answer(batch: PairBatch, example: Int[Tensor, " row"]) -> Rows:
    """Rows of examples at their answer alone: all that counts after the last attention layer.

    Returns:
        One row an example, of one token.
    """
    answer = batch.answer_at[example]
    return Rows(example=example, first=answer, last=answer, answer=answer)
