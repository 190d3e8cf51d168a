"""Pairs in any form, as batches on a model's device."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.encoding import LanguageModel
from circuitlab.data.limits import check_length, check_tokens, clipped
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, TokenError
from circuitlab.parts import ModelSpec

# Pairs of texts, or token tensors of one length.
Pairs = PairSet | PairBatch


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; one made under inference mode is copied, for no graph may hold it."""
    return tensor.to(device).clone() if tensor.is_inference() else tensor.to(device)


def prompt_keys(pairs: Pairs) -> list[tuple[int, int]]:
    """A key of the clean and of the corrupted prompt of every pair: equal for equal tokens.

    Returns:
        A pair of keys an example, clean and corrupted, in the order of the data set.
    """
    found = {}
    for batch in batches_of(pairs, "cpu"):
        keys = [[hash(tuple(tokens)) for tokens in prompts.tolist()] for prompts in (batch.clean, batch.corrupt)]
        found |= dict(zip(batch.index.tolist(), zip(*keys, strict=True), strict=True))
    return [found[place] for place in sorted(found)]


def batches_of(pairs: Pairs, device: torch.device | str) -> tuple[PairBatch, ...]:
    """Pairs in any form, as batches on a device.

    Returns:
        One batch a prompt length.

    Raises:
        ConfigError: It is neither a `PairSet` nor a `PairBatch`.
    """
    if isinstance(pairs, PairBatch):
        kept = ("clean", "corrupt", "answers", "distractors", "answer_at")
        moved = {name: _moved(getattr(pairs, name), device) for name in kept}
        spans = {name: _moved(span, device) for name, span in pairs.spans.items()}
        # A batch given by itself is a data set of its own: results are in the order of its rows.
        index = torch.arange(len(pairs), device=device)
        return (PairBatch(**moved, spans=spans, index=index, metric=pairs.metric),)
    if hasattr(pairs, "batches"):
        return pairs.batches(device)
    raise ConfigError(f"pairs must be task.pairs(...).discovery, .held_out or a PairBatch; got {type(pairs).__name__}.")


def batches_for(model: LanguageModel, pairs: Pairs) -> tuple[PairBatch, ...]:
    """Pairs in any form, as batches on the model's device, checked against its limits.

    Returns:
        One batch a prompt length.

    Raises:
        ConfigError: It is neither a `PairSet` nor a `PairBatch`.
        TokenError: A prompt is longer than the context, or holds a token that the model does not have.
    """
    found = batches_of(pairs, model.device)
    if not isinstance(pairs, PairBatch):
        check_pairs(pairs, model.spec)
    for batch in found:
        check_batch(batch, model.spec)
    return found


def check_pairs(pairs: PairSet, spec: ModelSpec) -> None:
    """Refuse pairs of texts that the model cannot read.

    Raises:
        TokenError: A pair is too long or has no token; the message has its id and the beginning of its text.
    """
    for pair in pairs:
        prompt = f"the clean prompt of pair {pair.id!r}, {clipped(pair.clean)},"
        if not len(pair):
            raise TokenError(f"{prompt} has no token. Give a text with words.")
        check_length(len(pair), spec.n_ctx, prompt)


def check_batch(batch: PairBatch, spec: ModelSpec) -> None:
    """Refuse pairs of tokens that the model cannot read, or answers that it cannot predict.

    Raises:
        TokenError: Prompts are too long, or a token is none of the model's.
    """
    check_tokens(batch.clean, spec)
    check_tokens(batch.corrupt, spec)
    for name, words in (("answers", batch.answers), ("distractors", batch.distractors)):
        if words.numel() and int(words.max()) >= spec.d_vocab:
            raise TokenError(
                f"{name} hold the token {int(words.max()):,}; model {spec.name!r} predicts the tokens 0 to "
                f"{spec.d_vocab - 1:,}."
            )
