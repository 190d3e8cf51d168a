"""A prompt with free places: which tokens are fixed and which are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.data.limits import check_length
from circuitlab.errors import ConfigError, TokenError
from circuitlab.models.protocol import Model
from circuitlab.neurons.prompts import front_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt of one length.

    Attributes:
        ids: Its tokens; 0 at the free places.
        free: The free places, a beginning-of-sequence token counted.
        n_special: How many tokens in front are no text.
    """

    ids: tuple[int, ...]
    free: tuple[int, ...]
    n_special: int

    def filled(self, words: Int[Tensor, "row _"]) -> Int[Tensor, "row seq"]:
        """Prompts with tokens in the free places."""
        rows = torch.tensor([self.ids], device=words.device).repeat(len(words), 1)
        rows[:, list(self.free)] = words
        return rows


def template_of(model: Model, n_tokens: int, fixed: Mapping[int, str]) -> Template:
    """The template of prompts of `n_tokens` tokens with some words fixed.

    Args:
        model: Its tokenizer makes tokens of the words, and puts the beginning-of-sequence token in front.
        n_tokens: Tokens, fixed ones counted and a beginning-of-sequence token not.
        fixed: Word by position; negative positions count from the end.

    Returns:
        The fixed tokens and the free positions.

    Raises:
        ConfigError: A position is outside of the prompt, or no place is free.
        TokenError: The prompt is longer than the context, or a word is not one token.
    """
    front = front_of(model)
    check_length(n_tokens, model.spec.n_ctx, f"a prompt of n_tokens={n_tokens}", more=len(front))
    ids = [*front, *[0] * n_tokens]
    taken: dict[int, str] = {}
    for position, word in fixed.items():
        if not -n_tokens <= position < n_tokens:
            raise ConfigError(f"a word is fixed at {position}; a prompt of {n_tokens} tokens has 0 to {n_tokens - 1}.")
        at = len(front) + position % n_tokens
        if at in taken:
            raise ConfigError(f"{taken[at]!r} and {word!r} are fixed at the same place. Leave one of them out.")
        taken[at] = word
        ids[at] = _single_token(model, word, front)
    free = tuple(at for at in range(len(front), len(ids)) if at not in taken)
    if not free:
        raise ConfigError(f"all {n_tokens} tokens are fixed, so that there is nothing to search for. Raise n_tokens.")
    return Template(ids=tuple(ids), free=free, n_special=len(front))


def _single_token(model: Model, word: str, front: tuple[int, ...]) -> int:
    coded = model.text.encode(word)
    ids, pieces = coded.ids[len(front) :], coded.tokens[len(front) :]
    if len(ids) != 1:
        raise TokenError(
            f"the fixed word {word!r} is {len(ids)} tokens for model {model.id!r}: {list(pieces)}. Fix single tokens "
            "(mind the leading space), or its tokens at neighbouring positions."
        )
    return ids[0]
