"""Pairs in any form, as batches on a model's device."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitlab.data.batch import PairBatch, no_corrupted
from circuitlab.data.encoded import LanguageModel
from circuitlab.data.limits import check_length, check_tokens, clipped
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, TokenError
from circuitlab.parts import ModelSpec

# Pairs of texts, or token tensors of one length.
Pairs = PairSet | PairBatch


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; one made under inference mode is copied, for no graph may hold it."""
    return tensor.to(device).clone() if tensor.is_inference() else tensor.to(device)


def has_corrupted(pairs: Pairs) -> bool:
    """Whether pairs have corrupted prompts.

    Returns:
        Whether they have; for what is no set of pairs too, so that its own check refuses it.
    """
    return pairs.corrupt is not None if isinstance(pairs, PairBatch) else getattr(pairs, "has_corrupted", True)


def check_corrupted(pairs: Pairs, need: str, instead: str = "") -> None:
    """Refuse pairs without corrupted prompts; arguments as of `no_corrupted`.

    Raises:
        ConfigError: They have none.
    """
    if not has_corrupted(pairs):
        raise no_corrupted(need, instead)


def prompt_keys(pairs: Pairs) -> list[tuple[int, ...]]:
    """A key of the clean and of the corrupted prompt of every pair: equal for equal tokens.

    Returns:
        A pair of keys an example, clean and corrupted, in the order of the data set; one key without corrupted prompts.
    """
    found = {}
    for batch in batches_of(pairs, "cpu"):
        keys = zip(*(map(hash, batch.prompts(side)) for side in batch.sides), strict=True)
        found |= dict(zip(batch.places.tolist(), keys, strict=True))
    return [found[place] for place in sorted(found)]


def batches_of(pairs: Pairs, device: torch.device | str) -> tuple[PairBatch, ...]:
    """Pairs in any form, as batches on a device.

    Returns:
        One batch a prompt length.

    Raises:
        ConfigError: It is neither a `PairSet` nor a `PairBatch`, or a `PairBatch` of answers of several tokens.
    """
    if isinstance(pairs, PairBatch):
        if pairs.n_words is not None:
            raise ConfigError(
                "this PairBatch holds answers of several tokens, which take several rows a pair. Give the PairSet that "
                "it is of."
            )
        moved = {
            name: _moved(getattr(pairs, name), device) for name in ("clean", "answers", "distractors", "answer_at")
        }
        corrupt = None if pairs.corrupt is None else _moved(pairs.corrupt, device)
        spans = {name: _moved(span, device) for name, span in pairs.spans.items()}
        # A batch given by itself is a data set of its own: results are in the order of its rows.
        index = torch.arange(len(pairs), device=device)
        return (PairBatch(**moved, corrupt=corrupt, spans=spans, index=index, metric=pairs.metric),)
    if hasattr(pairs, "batches"):
        return pairs.batches(device)
    raise ConfigError(f"pairs must be task.pairs(...).discovery, .held_out or a PairBatch; got {type(pairs).__name__}.")


def batches_for(model: LanguageModel, pairs: Pairs, *, whole_answers: bool = False) -> tuple[PairBatch, ...]:
    """Pairs in any form, as batches on the model's device, checked against its limits.

    Args:
        model: The model.
        pairs: The pairs.
        whole_answers: Accept answers of several tokens, whose pairs take several rows.

    Returns:
        One batch a prompt length.

    Raises:
        ConfigError: It is neither a `PairSet` nor a `PairBatch`; answers have several tokens, and the caller reads
            one position, or the model is not causal.
        TokenError: A prompt is longer than the context, or holds a token that the model does not have.
    """
    found = batches_of(pairs, model.device)
    check_answers(pairs, model.spec, whole_answers=whole_answers)
    if not isinstance(pairs, PairBatch):
        check_pairs(pairs, model.spec)
    for batch in found:
        check_batch(batch, model.spec)
    return found


def check_answers(pairs: Pairs, spec: ModelSpec, *, whole_answers: bool = False) -> None:
    """Refuse answers of several tokens where only one position is judged, or a token sees those after it.

    Raises:
        ConfigError: A pair has such an answer; the message has its id and the word.
    """
    several = (pair for pair in pairs if pair.n_appended) if isinstance(pairs, PairSet) else iter(())
    if (whole_answers and spec.causal) or (pair := next(several, None)) is None:
        return
    words = zip(pair.answers + pair.distractors, pair.answer_tokens + pair.distractor_tokens, strict=True)
    word = next(word for word, ids in words if len(ids) > 1)
    why = "a token sees those after it in this model" if whole_answers else "here only the next token is judged"
    raise ConfigError(
        f"{word!r} of pair {pair.id!r} has several tokens, and {why}. Draw pairs with answers of one token "
        "(task.pairs(..., whole_answers=False))."
    )


def check_pairs(pairs: PairSet, spec: ModelSpec) -> None:
    """Refuse pairs of texts that the model cannot read.

    Raises:
        TokenError: A pair is too long or has no token; the message has its id and the beginning of its text.
    """
    for pair in pairs:
        prompt = f"the clean prompt of pair {pair.id!r}, {clipped(pair.clean)},"
        if not len(pair):
            raise TokenError(f"{prompt} has no token. Give a text with words.")
        check_length(len(pair), spec.n_ctx, prompt, pair.n_appended)


def check_batch(batch: PairBatch, spec: ModelSpec) -> None:
    """Refuse pairs of tokens that the model cannot read, or answers that it cannot predict.

    Raises:
        TokenError: Prompts are too long, or a token is none of the model's.
    """
    for side in batch.sides:
        check_tokens(getattr(batch, side), spec)
    for name, words in (("answers", batch.answers), ("distractors", batch.distractors)):
        if words.numel() and int(words.max()) >= spec.d_vocab:
            raise TokenError(
                f"{name} hold the token {int(words.max()):,}; model {spec.name!r} predicts the tokens 0 to "
                f"{spec.d_vocab - 1:,}."
            )
