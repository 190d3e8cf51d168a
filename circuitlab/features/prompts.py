"""Texts or tokens as a user gives them, in batches of one length. Nothing is padded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.data.limits import check_length, check_tokens, clipped, is_whole
from circuitlab.errors import ConfigError, ModelError
from circuitlab.models.protocol import Model
from circuitlab.models.text import words_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptBatch:
    """Prompts of one length.

    Attributes:
        tokens: Their tokens.
        index: Their places among all prompts.
    """

    tokens: Int[Tensor, "batch seq"]
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """Prompts, by length.

    Attributes:
        batches: Shortest first.
        words: Each prompt's tokens as text, in the order given.
    """

    batches: tuple[PromptBatch, ...]
    words: tuple[tuple[str, ...], ...]


def prompts_of(model: Model, texts: str | Sequence[str] | Int[Tensor, "batch seq"]) -> Prompts:
    """Encode texts, or take tokens as they are.

    Raises:
        ConfigError: There is none, or one is empty.
        TokenError: One is longer than the context, or holds an id that the model does not have.
        ModelError: Texts are given, and the model has no tokenizer.
    """
    if isinstance(texts, Tensor):
        if texts.ndim != 2 or texts.numel() == 0 or not is_whole(texts):
            raise ConfigError(f"tokens must be whole numbers [batch, seq]; got {tuple(texts.shape)} {texts.dtype}.")
        check_tokens(texts, model.spec)
        ids = [tuple(row) for row in texts.tolist()]
        words = tuple(words_of(model, row) for row in ids)
    else:
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given:
            raise ConfigError("no text is given.")
        if empty := [i for i, text in enumerate(given) if not text]:
            raise ConfigError(f"text {empty[0]} is empty.")
        encoded = [model.text.encode(text) for text in given]
        ids, words = [each.ids for each in encoded], tuple(each.tokens for each in encoded)
    for number, each in enumerate(words):
        check_length(len(each), model.spec.n_ctx, f"text {number}, {clipped(''.join(each))},")
    by_length = defaultdict[int, list[int]](list)
    for place, row in enumerate(ids):
        by_length[len(row)].append(place)
    batches = tuple(
        PromptBatch(tokens=torch.tensor([ids[i] for i in places], device=model.device), index=tuple(places))
        for _, places in sorted(by_length.items())
    )
    return Prompts(batches=batches, words=words)


def n_front(model: Model) -> int:
    """How many tokens (BOS) stand in front of every text, where activations are unlike all others."""
    try:
        return len(model.bos.ids)
    except ModelError:
        return 0
