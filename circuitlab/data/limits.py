"""What a model can read: no more tokens than its context holds, and only tokens that it has. Checked here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.errors import ConfigError, TokenError
from circuitlab.parts import ModelSpec

_SHOWN = 60  # characters of a text in a message
_SHOWN_IDS = 8  # tokens of a prompt without text


def check_length(n_tokens: int, n_ctx: int | None, prompt: str, more: int = 0) -> None:
    """Refuse a prompt that is longer than the context.

    Args:
        n_tokens: Tokens of the prompt.
        n_ctx: Tokens that the context holds; None for no limit.
        prompt: What the message calls the prompt.
        more: How many more tokens the context has to hold.

    Raises:
        TokenError: It is longer.
    """
    if n_ctx is not None and n_tokens + more > n_ctx:
        asked = f" and {more:,} more are asked for" if more else ""
        raise TokenError(
            f"{prompt} has {n_tokens:,} tokens{asked}, but the context holds {n_ctx:,}. "
            "Shorten it, or take a model with a longer context."
        )


def check_ids(ids: Sequence[int], spec: ModelSpec, prompt: str) -> None:
    """Refuse tokens that the model cannot read.

    Raises:
        TokenError: An id is negative, or the embedding has no row for it.
    """
    wrong = next((i for i in ids if not 0 <= i < spec.n_embeddings), None)
    if wrong is not None:
        raise TokenError(
            f"{prompt} holds the token {wrong}; model {spec.name!r} has the tokens 0 to {spec.n_embeddings - 1:,}."
        )


def check_tokens(tokens: Int[Tensor, "batch seq"], spec: ModelSpec) -> None:
    """Refuse token tensors that the model cannot read.

    Raises:
        ConfigError: They are not a tensor of whole numbers of that shape, with at least one token a prompt.
        TokenError: They are too long, or hold an id that the model does not have.
    """
    if not is_whole(tokens) or tokens.ndim != 2 or not tokens.shape[1]:
        got = f"{tuple(tokens.shape)} {tokens.dtype}" if torch.is_tensor(tokens) else type(tokens).__name__
        raise ConfigError(f"tokens must be an integer tensor [prompt, token] with at least one token; got {got}.")
    if not tokens.numel():
        return
    check_length(tokens.shape[1], spec.n_ctx, _tokens_shown(tokens, 0))
    wrong = (tokens < 0) | (tokens >= spec.n_embeddings)
    if bool(wrong.any()):
        row = int(wrong.any(1).nonzero()[0])
        check_ids(tokens[row].tolist(), spec, _tokens_shown(tokens, row))


def is_whole(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor of whole numbers; truth values are none.

    Returns:
        Whether it is.
    """
    if not torch.is_tensor(value):
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def clipped(text: str) -> str:
    """The beginning of a text, quoted, for a message.

    Returns:
        At most 60 characters, in quotes.
    """
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _tokens_shown(tokens: Int[Tensor, "batch seq"], row: int) -> str:
    ids = [str(i) for i in tokens[row, :_SHOWN_IDS].tolist()]
    return f"prompt {row} (tokens {', '.join(ids)}{', ...' if tokens.shape[1] > _SHOWN_IDS else ''})"
