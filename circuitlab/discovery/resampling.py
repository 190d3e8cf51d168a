"""Bootstrap resamples of scored pairs: where scores are means over examples, no model is run to score a resample.

Whether a method's scores are such means is tried on two pairs of prompts, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int

from circuitlab.data.batching import Pairs
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.ranking import edge_places
from circuitlab.patching.experiment import Experiment
from circuitlab.stats import standard_error

# Scores of a mean over examples agree with the mean of the scores to rounding: 1e-6 of the largest, in float32.
ADDITIVE = 1e-4


def resampled(
    pairs: Pairs,
    whole: EdgeScores,
    each: Float[np.ndarray, "example edge"] | None,
    scored: Callable[[Pairs], EdgeScores],
    n_resamples: int,
    seed: int,
) -> Iterator[tuple[Pairs, EdgeScores]]:
    """Draw resamples of the pairs, with replacement and of the same size, and score them.

    Args:
        pairs: The pairs.
        whole: Their scores.
        each: Every example's scores, as `by_example` gives them; without them every resample is scored anew.
        scored: Scores a set of pairs.
        n_resamples: Number of resamples.
        seed: Of what is drawn.

    Returns:
        Each resample with its scores.
    """
    places, rng = tuple(edge_places(whole.layout).T), np.random.default_rng([seed, 20])
    for _ in range(n_resamples):
        index = np.sort(rng.integers(0, len(pairs), len(pairs)))
        given = taken(pairs, index)
        if each is None:
            yield given, scored(given)
            continue
        mean, error = np.zeros_like(whole.standard_error), np.zeros_like(whole.standard_error)
        mean[places], error[places] = each[index].mean(0), standard_error(each[index].T, 0.0)
        yield given, replace(whole, values=mean, standard_error=error)


def by_example(
    experiment: Experiment, scored: Callable[[Pairs], EdgeScores]
) -> Float[np.ndarray, "example edge"] | None:
    """Score every example alone.

    GPT-2's 32,491 edges on 100 examples take 26 MB.

    Returns:
        One row an example; None if the score of a set is not the mean of its examples' scores.
    """
    pairs = experiment.pairs

    def of(index: list[int]) -> Float[np.ndarray, " edge"]:
        given = scored(taken(pairs, np.array(index)))
        rows, columns = edge_places(given.layout).T
        return given.values[rows, columns]

    first = [of([i]) for i in range(min(2, len(pairs)))]
    if len(pairs) > 1:
        both = of([0, 1])
        if np.abs(both - np.mean(first, axis=0)).max() > ADDITIVE * max(float(np.abs(both).max()), 1e-30):
            return None
    rest = []
    for i in range(len(first), len(pairs)):
        rest.append(of([i]))
        experiment.progress("score examples", i + 1, len(pairs))
    return np.stack([*first, *rest])


def taken(pairs: Pairs, index: Int[np.ndarray, " example"]) -> Pairs:
    """Select pairs by number, possibly several times.

    Returns:
        A set of the same type.
    """
    if isinstance(pairs, PairSet):
        return replace(pairs, pairs=tuple(pairs[int(i)] for i in index))
    at = torch.as_tensor(index, device=pairs.clean.device)
    return replace(pairs.take(at), index=torch.arange(len(index), device=pairs.clean.device))
