"""Formulas of the metrics: from logits at the answer position to one number per example."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.continuations import NO_TOKEN


def _at(values: Float[Tensor, "batch d_vocab"], tokens: Int[Tensor, "batch answer"]) -> Float[Tensor, "batch answer"]:
    return values.gather(1, tokens.clamp_min(0))


def _mean_at(values: Float[Tensor, "batch d_vocab"], tokens: Int[Tensor, "batch answer"]) -> Float[Tensor, " batch"]:
    """Mean over an example's own tokens; padding (-1) is ignored."""
    there = tokens != NO_TOKEN
    return (_at(values, tokens) * there).sum(1) / there.sum(1)


def logit_diff(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Mean logit of the answers minus mean logit of the distractors; padding (-1) is ignored.

    Returns:
        One value per example, in logits; positive if the answers are preferred.

    References:
        Wang et al. 2023, arXiv:2211.00593.
    """
    return _mean_at(logits, batch.answers) - _mean_at(logits, batch.distractors)


def prob_diff(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Summed probability of the answers minus summed probability of the distractors; between -1 and 1.

    Returns:
        One value per example, a difference of probabilities; positive if the answers are preferred.

    References:
        Hanna et al. 2023, arXiv:2305.00586 (for greater-than).
    """
    probs = logits.softmax(1)
    right = (_at(probs, batch.answers) * (batch.answers != NO_TOKEN)).sum(1)
    wrong = (_at(probs, batch.distractors) * (batch.distractors != NO_TOKEN)).sum(1)
    return right - wrong


def log_prob(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Log of the summed probability of the answers, in nats; at most 0. Distractors are not used.

    Returns:
        One value per example, in nats.

    References:
        Heimersheim and Nanda 2024, arXiv:2404.15255.
    """
    chosen = _at(logits.log_softmax(1), batch.answers)
    return chosen.masked_fill(batch.answers == NO_TOKEN, float("-inf")).logsumexp(1)


def answer_log_prob(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Log-probability of the whole answer, the mean over the answers where there are several; in nats.

    The log-probability of an answer is the sum over its tokens, each given the prompt and the tokens before it.
    Distractors are not used.

    Returns:
        One value per row; those of a pair's rows sum to the metric of the pair.

    References:
        Heimersheim and Nanda 2024, arXiv:2404.15255 (on log-probabilities as metrics).
    """
    (share, chosen), _ = _shares(logits, batch)
    return chosen - share * logits.logsumexp(1)


def answer_log_prob_diff(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Log-probability of the whole answer minus that of the whole distractor, in nats; means over several of either.

    For words of one token it is the logit difference: both have the same normalization.

    Returns:
        One value per row; those of a pair's rows sum to the metric of the pair, positive if the answer is preferred.

    References:
        Wang et al. 2023, arXiv:2211.00593 (the logit difference, which it equals for words of one token).
    """
    (right, chosen), (wrong, other) = _shares(logits, batch)
    return chosen - other - (right - wrong) * logits.logsumexp(1)


def _shares(
    logits: Float[Tensor, "batch d_vocab"], batch: PairBatch
) -> list[tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]]:
    """Of answers and of distractors: the share of words with a token in each row, and the sum of its logits by all."""
    found = []
    for kind, tokens in enumerate((batch.answers, batch.distractors)):
        there = tokens != NO_TOKEN
        n = (there.sum(1) if batch.n_words is None else batch.n_words[:, kind]).clamp_min(1)
        found.append((there.sum(1) / n, (_at(logits, tokens) * there).sum(1) / n))
    return found


def kl(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """KL divergence of these predictions from the clean run's, KL(clean || these), in nats; summed over the vocabulary.

    Of answers of several tokens it is summed over the positions that are judged.

    Answers and distractors are not used. The gradient at the clean run is zero, so gradient methods need another
    metric.

    Returns:
        One value per example, in nats; at least 0.

    References:
        Conmy et al. 2023, arXiv:2304.14997.
    """
    assert batch.reference is not None
    clean = batch.reference.log_softmax(1)
    return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)


def _rank(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Int[Tensor, " batch"]:
    there: Bool[Tensor, "batch answer"] = batch.answers != NO_TOKEN
    if batch.n_words is not None:
        return _rank_of_whole_answers(logits, batch, there)
    best = _at(logits, batch.answers).masked_fill(~there, float("-inf")).amax(1, keepdim=True)
    return (logits > best).sum(1)


def _rank_of_whole_answers(
    logits: Float[Tensor, "batch d_vocab"], batch: PairBatch, there: Bool[Tensor, "batch answer"]
) -> Int[Tensor, " batch"]:
    """The rank of each pair's best answer, an answer's being that of its least likely token; rows of whole pairs.

    The pair's first row has the value; the others have 0.
    """
    columns = _at(logits, batch.answers).T
    ranks = torch.stack([(logits > column[:, None]).sum(1) for column in columns], 1).masked_fill(~there, -1)
    _, pair = batch.index.unique_consecutive(return_inverse=True)
    worst = ranks.new_full((int(pair[-1]) + 1, ranks.shape[1]), -1)
    worst = worst.scatter_reduce(0, pair[:, None].expand_as(ranks), ranks, "amax")
    best = worst.masked_fill(worst < 0, logits.shape[1]).amin(1)
    return best[pair] * batch.is_first


def accuracy(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """1 if no token is more likely than the most likely answer, else 0. Distractors are not used.

    Of answers of several tokens: 1 if greedy decoding gives an answer, each token of it being the most likely one after
    those before it.

    Returns:
        One value per example, 0 or 1; its mean is the accuracy.

    References:
        Heimersheim and Nanda 2024, arXiv:2404.15255 (on discrete metrics).
    """
    return ((_rank(logits, batch) == 0) & batch.is_first).to(logits.dtype)


def rank(logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
    """Number of tokens that are more likely than the most likely answer; 0 is best. Distractors are not used.

    Of answers of several tokens it is the rank of the best answer, an answer's being the largest of its tokens' ranks.

    Returns:
        One value per example, a number of tokens.

    References:
        Heimersheim and Nanda 2024, arXiv:2404.15255 (on discrete metrics).
    """
    return _rank(logits, batch).to(logits.dtype)
