"""Score every edge by a named method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.eap import score_eap
from circuitlab.discovery.eap_ig import score_eap_ig
from circuitlab.discovery.exact import score_exact
from circuitlab.discovery.node_sweep import score_node_sweep
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import UnknownNameError
from circuitlab.metrics import Metric, resolve
from circuitlab.metrics.base import MetricFunction
from circuitlab.models.protocol import Model
from circuitlab.progress import Progress, silent
from circuitlab.references import HANNA_2024, SYED_2023, WANG_2023, Reference


@dataclass(frozen=True, slots=True)
class Method:
    """A way to score edges.

    Attributes:
        name: What users call it.
        what: One line for help and docs.
        source: The paper.
        takes_steps: Whether `steps` means something to it.
        score: The function.
    """

    name: str
    what: str
    source: Reference
    takes_steps: bool
    score: Callable[..., EdgeScores]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("eap-ig", "integrated gradients along the input embedding", HANNA_2024, True, score_eap_ig),
        Method("eap", "one gradient, in the clean run", SYED_2023, False, score_eap),
        Method("exact", "every edge patched alone, no approximation", SYED_2023, False, score_exact),
        Method(
            "sweep",
            "nodes by their head_z and mlp_out patches, edges between kept nodes",
            WANG_2023,
            False,
            score_node_sweep,
        ),
    )
}


def find_method(name: str) -> Method:
    """The method with this name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in METHODS:
        raise UnknownNameError.of("method", name, METHODS)
    return METHODS[name]


def score_edges(
    model: Model,
    pairs: PairSet | PairBatch,
    method: str = "eap-ig",
    *,
    steps: int = 5,
    metric: str | Metric | MetricFunction = "logit_diff",
    budget: int | None = None,
    progress: Progress = silent,
) -> EdgeScores:
    """Score every edge of the model's graph.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        method: A name of `METHODS`.
        steps: Gradients along the path, for methods that integrate.
        metric: What is measured at the answer position.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: Called with (step, done, total).

    Returns:
        Scores in the metric's unit, m(clean) - m(with the edge corrupted): positive where the edge helps. For metrics
        where less is better (`kl`, `rank`) the sign is turned, so that positive helps there too.

    Raises:
        UnknownNameError: No such method or metric.
        MetricError: The metric is of no use to the method, or gives the wrong shape or NaN.
    """
    found, judged_by = find_method(method), resolve(metric)
    options = {"steps": steps} if found.takes_steps else {}
    scores = found.score(model, pairs, judged_by, budget=budget, progress=progress, **options)
    return scores if judged_by.higher_is_better else replace(scores, values=-scores.values)
