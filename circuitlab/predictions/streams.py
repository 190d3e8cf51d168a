"""The final stream of texts of any length, many texts a run; logits and log-probabilities, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.texts import filled
from circuitlab.models.protocol import Model
from circuitlab.patching.runs.baseline import LOGITS_AT_ONCE
from circuitlab.patching.runs.packing import bytes_per_row, packs, rows_per_pack
from circuitlab.resources import DEFAULT, Resources

# Bytes of a pack of texts on a CPU: with 192 MB the padding of shorter texts cost as much again as the texts, with
# 8 MB the calls did (2,000 texts on the bundled model: 9.6 s, 5.6 s at 64, 8.8 s at 8).
PACK_BYTES = 48 * 2**20


def packs_by_length(
    model: Model, lengths: Sequence[int], resources: Resources = DEFAULT, extra_streams: int = 0
) -> Iterator[list[int]]:
    """Which texts to run together: of similar length, the longest first, as many as memory holds.

    Args:
        model: Its widths determine what a token costs. Where tokens attend to later ones, only texts of one length run
            together, since padding would be attended to.
        lengths: Tokens of each text.
        resources: Bytes that a run may take.
        extra_streams: How many more tensors of the stream's size stay alive for every text.

    Yields:
        Numbers of texts.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        size = rows_per_pack(model, longest, resources, extra_streams)
        if model.device.type == "cpu":
            size = max(1, min(size, PACK_BYTES // bytes_per_row(model, longest, extra_streams)))
        stop = min(start + size, len(order))
        if not model.spec.causal:
            stop = next((at for at in range(start, stop) if lengths[order[at]] < longest), stop)
        yield order[start:stop]
        start = stop


def final_stream(model: Model, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_model"]:
    """The stream after the last block, before the final norm; nothing else is kept.

    Returns:
        The stream `[batch, seq, d_model]`.
    """
    tokens = tokens.to(model.device)
    return model.run_blocks(model.embedding(tokens), 0, model.block_arguments(tokens))


@torch.no_grad()
def last_streams(
    model: Model, ids: Sequence[Sequence[int]], resources: Resources = DEFAULT
) -> Float[Tensor, "text d_model"]:
    """The final stream at the last token of each text.

    Args:
        model: The model.
        ids: Tokens of each text.
        resources: Bytes that a run may take.

    Returns:
        One row per text.
    """
    found = torch.empty(len(ids), model.spec.d_model, dtype=model.dtype, device=model.device)
    for chosen in packs_by_length(model, [len(row) for row in ids], resources):
        tokens, lengths = filled([ids[i] for i in chosen])
        stream = final_stream(model, tokens)
        found[torch.tensor(chosen, device=stream.device)] = stream[torch.arange(len(chosen)), lengths - 1]
    return found


def logits_by_part(
    model: Model, stream: Float[Tensor, "row d_model"]
) -> Iterator[tuple[slice, Float[Tensor, "part d_vocab"]]]:
    """Next-token logits of many positions, a part of them at a time, so that memory does not grow with the text.

    Yields:
        The part's rows, and their logits in at least single precision.
    """
    for rows in packs(len(stream), max(1, LOGITS_AT_ONCE // model.spec.d_vocab)):
        logits = model.logits(stream[rows])
        yield rows, logits if logits.dtype == torch.float64 else logits.float()


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
