"""What is attributed, checked before any work: a weighted sum of logits, the run, and the prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.data.batch import NO_TOKEN, PairBatch, no_corrupted
from circuitlab.data.batching import batches_for
from circuitlab.data.limits import check_ids, check_length, clipped, is_whole
from circuitlab.data.pair import Pair
from circuitlab.data.pairs import PairSet
from circuitlab.errors import ConfigError, MetricError, UnknownNameError
from circuitlab.metrics.base import METRICS, no_distractor
from circuitlab.models.protocol import Model
from circuitlab.models.text import words_of

Weights = Float[Tensor, "batch word"]


def _logit_diff(batch: PairBatch, n_words: int) -> Weights:
    if not batch.has_distractors:
        raise MetricError(no_distractor("logit_diff", "some pairs have none"))
    return _spread(batch.answers, n_words) - _spread(batch.distractors, n_words)


def _logit(batch: PairBatch, n_words: int) -> Weights:
    return _spread(batch.answers, n_words)


QUANTITIES: dict[str, Callable[[PairBatch, int], Weights]] = {"logit_diff": _logit_diff, "logit": _logit}
"""By name: `logit_diff`, mean logit of the answers minus that of the distractors; `logit`, the first half of it."""


def check_quantity(name: object) -> str:
    """The name of a quantity that is a sum over the stream.

    Returns:
        Its name.

    Raises:
        ConfigError: It is a metric of another kind.
        UnknownNameError: It is no metric at all.
    """
    found = getattr(name, "name", name)
    if found in QUANTITIES:
        return str(found)
    if not isinstance(found, str) or found in METRICS:
        raise ConfigError(
            f"metric {found!r} is no weighted sum of logits, so that no part of the stream has a share of it. "
            f"Attribute {' or '.join(QUANTITIES)}; logit_lens(...) and sweep(...) take any metric."
        )
    raise UnknownNameError.of("metric", found, QUANTITIES)


def weighted_words(name: str, batch: PairBatch) -> tuple[Int[Tensor, " word"], Weights]:
    """The words whose logits count, and each example's weights: the quantity is `(logits * weights).sum(-1)`.

    Returns:
        Token ids, and the function from a batch to weights `[batch, word]`.
    """
    words, compact = batch.compact()
    return words, QUANTITIES[name](compact, len(words))


def _spread(tokens: Int[Tensor, "batch answer"], n_words: int) -> Weights:
    """The mean over each example's own tokens as weights of all words; places filled with -1 do not count."""
    there = (tokens != NO_TOKEN).double()
    weights = torch.zeros(len(tokens), n_words, dtype=torch.float64, device=tokens.device)
    return weights.scatter_add_(1, tokens.clamp_min(0), there / there.sum(1, keepdim=True))


RUNS = ("clean", "corrupt")
# A recording holds some 30 numbers of width d_model a token and layer: for GPT-2 a gigabyte at this many tokens.
TOKENS_AT_ONCE = 1024


def check_run(run: str) -> None:
    """Refuse a run that does not exist.

    Raises:
        UnknownNameError: It is neither "clean" nor "corrupt".
    """
    UnknownNameError.check("run", run, RUNS)


def per_example(
    model: Model, pairs: PairSet | PairBatch, run: str, of_batch: Callable[[PairBatch], Float[Tensor, "row batch"]]
) -> Float[np.ndarray, "row example"]:
    """Rows of values of every example, batch by batch, in the order of the pairs.

    Returns:
        Values `[row, example]`.
    """
    found = [
        (of_batch(batch).double().cpu().numpy(), batch.index.cpu().numpy()) for batch in batches(model, pairs, run)
    ]
    tables, order = zip(*found, strict=True)
    return np.concatenate(tables, 1)[:, np.argsort(np.concatenate(order), kind="stable")]


def batches(model: Model, pairs: PairSet | PairBatch, run: str) -> Iterator[PairBatch]:
    """The pairs in batches small enough to be recorded; `clean` holds the prompts of the chosen run."""
    for whole in batches_for(model, pairs):
        chosen = whole if run == "clean" else whole.swapped()
        size = max(1, TOKENS_AT_ONCE // whole.n_tokens)
        for start in range(0, len(whole), size):
            yield chosen.take(torch.arange(start, min(start + size, len(whole)), device=model.device))


Prompt = str | Pair | Tensor


def tokens_of(model: Model, prompt: Prompt, run: str) -> tuple[Int[Tensor, "1 seq"], tuple[str, ...]]:
    """The tokens of a prompt, as numbers and as text.

    Args:
        model: The model whose tokenizer reads text.
        prompt: Text; a pair, of which `run` says which prompt; or token ids, one row or a vector.
        run: "clean" or "corrupt".

    Returns:
        Token ids, shape [1, seq], and the text of each token.

    Raises:
        ConfigError: There is no token, or it is no prompt.
        TokenError: There are more tokens than the context holds, or ids that the model does not have.
        ModelError: Text, and the model has no tokenizer.
    """
    check_run(run)
    if isinstance(prompt, Pair):
        ids, words = prompt.clean_ids, prompt.clean_tokens
        if run != "clean":
            ids, words = prompt.corrupt_ids, prompt.corrupt_tokens
        if ids is None or words is None:
            raise no_corrupted("run 'corrupt' is that of the corrupted prompt", "Take run 'clean' (--run clean)")
    elif isinstance(prompt, str):
        encoded = model.text.encode(prompt)
        ids, words = encoded.ids, encoded.tokens
    elif is_whole(prompt) and prompt.squeeze(0).ndim == 1:
        ids = tuple(int(i) for i in prompt.flatten())
        check_ids(ids, model.spec, "the prompt")
        words = words_of(model, ids)
    else:
        got = f"{prompt.dtype} {tuple(prompt.shape)}" if torch.is_tensor(prompt) else type(prompt).__name__
        raise ConfigError(f"a prompt is a text, a pair of a task, or one row of token ids; got {got}.")
    if not ids:
        raise ConfigError("the prompt has no token. Give at least one word.")
    check_length(len(ids), model.spec.n_ctx, f"the prompt {clipped(text_of(prompt, tuple(words), run))}")
    return torch.tensor([ids], dtype=torch.long, device=model.device), tuple(words)


def text_of(prompt: Prompt, tokens: tuple[str, ...], run: str) -> str:
    """A prompt as a reader knows it.

    Returns:
        The text.
    """
    if isinstance(prompt, Pair):
        return prompt.clean if run == "clean" or prompt.corrupt is None else prompt.corrupt
    return prompt if isinstance(prompt, str) else "".join(tokens)
