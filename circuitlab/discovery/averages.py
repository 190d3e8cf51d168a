"""Means over examples of what a method computes batch by batch, and the scores made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.discovery.node_scores import NodeScores
from circuitlab.discovery.scores import EdgeScores
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.stats import RunningMean


def averaged(
    batches: Iterable[tuple[PairBatch, Mapping[str, Tensor]]], layout: Layout | None = None
) -> tuple[RunningMean, dict[str, Float[np.ndarray, "... example"]]]:
    """Average the scores of batches, and join their other values.

    Args:
        batches: Each batch with its "scores" `[batch, ...]`, and any further values `[..., batch]`; those of a pair's
            rows are summed.
        layout: For scores of edges.

    Returns:
        The mean of the scores, and the further values of all examples by name, examples last.
    """
    running = RunningMean(1.0 if layout is None else real_edges(layout))
    further = dict[str, list[np.ndarray]]()
    for batch, found in batches:
        for name, values in found.items():
            numbers = batch.per_pair(values.double(), 0 if name == "scores" else -1).cpu().numpy()
            running.add(numbers) if name == "scores" else further.setdefault(name, []).append(numbers)
    return running, {name: np.concatenate(parts, -1) for name, parts in further.items()}


def scores_of(
    experiment: Experiment,
    method: str,
    values: RunningMean | Float[np.ndarray, "*score"],
    standard_error: Float[np.ndarray, "*score"] | None = None,
    *,
    level: str = "edge",
    **more: Any,
) -> Any:
    """Scores of an experiment's pairs.

    Args:
        experiment: The experiment; it names the model's shape, the metric and the number of examples.
        method: Name of the method.
        values: The scores, or their mean over examples with its standard error.
        standard_error: Their standard error; 0 by default.
        level: "edge", or a name of `LEVELS`.
        more: Further attributes of the scores, such as `checks`.

    Returns:
        `EdgeScores`, or `NodeScores` for another level.
    """
    if isinstance(values, RunningMean):
        values, standard_error = values.mean, values.standard_error
    about: dict[str, Any] = {
        "spec": experiment.model.spec, "method": method, "metric": experiment.metric.name, "values": values,
        "standard_error": np.zeros_like(values) if standard_error is None else standard_error,
        "n_examples": experiment.n_examples, **more,
    }  # fmt: skip
    return EdgeScores(**about) if level == "edge" else NodeScores(level=level, **about)
