"""Log-probabilities of next tokens from final streams, never with more logits alive than a small budget."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.predictions.streams import logits_by_part


@torch.no_grad()
def log_probs_of(
    model: Model, stream: Float[Tensor, "token d_model"], target: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Natural log-probability of one token at each of many final streams.

    Args:
        model: The model.
        stream: Final streams.
        target: The token at each, whose log-probability is returned.

    Returns:
        One value for each stream, in nats, at most 0.
    """
    found = [stream.new_zeros(0, dtype=torch.float32)]
    for part, (log_probs,) in _streamed(model, stream):
        found.append(log_probs.gather(1, target[part, None]).squeeze(1))
    return torch.cat([values.to(found[-1].dtype) for values in found])


@torch.no_grad()
def largest_changes(
    model: Model, before: Float[Tensor, "token d_model"], after: Float[Tensor, "token d_model"]
) -> tuple[Int[Tensor, " token"], Float[Tensor, " token"]]:
    """The token whose log-probability differs most between two final streams, and by how much.

    Args:
        model: The model.
        before: Final streams.
        after: The streams to compare with, token by token.

    Returns:
        The token, and its log-probability after minus before.
    """
    words, changes = [], []
    for _, (first, second) in _streamed(model, before, after):
        difference = second - first
        word = difference.abs().argmax(1)
        words.append(word)
        changes.append(difference.gather(1, word[:, None]).squeeze(1))
    return torch.cat(words), torch.cat(changes)


def _streamed(
    model: Model, *streams: Float[Tensor, "token d_model"]
) -> Iterator[tuple[slice, list[Float[Tensor, "_ d_vocab"]]]]:
    """Log-probabilities over the vocabulary, a few tokens at a time, in float32 at least."""
    for together in zip(*(logits_by_part(model, stream) for stream in streams), strict=True):
        yield together[0][0], [torch.log_softmax(logits, -1) for _, logits in together]
