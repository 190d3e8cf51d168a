"""ACDC: automated circuit discovery, edge by edge from the logits backwards.

1. Start from the whole model. The cost of a circuit is the KL divergence from the whole model's predictions (as in the
   paper), or the metric, negated where more is better.
2. Visit the edges in a fixed order, from the logits backwards (`acdc_walk`). Cut each, in addition to all edges cut
   before. Where the mean cost over all examples rises by less than the threshold it stays cut, else it is restored.
3. A node without incoming edges is cut out of later nodes; edges into a node without outgoing edges are cut untested.

The remaining edges are the circuit (`EdgeScores.chosen`). One threshold gives one circuit; `n_edges` finds the
threshold by bisection. An edge's score in one search is the rise of the cost when it was cut: at least the threshold
for kept edges, less for cut ones. Positive: the edge helps. Edges that were not tested, or were cut later with their
node, score 0 and have a second score, by which they rank below all others: that of EAP on the same pairs, one gradient
in the clean run (`EdgeScores.second_scores`), of the metric, or of `logit_diff` where the metric has no gradient in the
clean run. A sweep over thresholds (`sweep=`) scores an edge by the largest threshold at which it was kept instead.

The published code tests three more kinds of edges, from a head's q, k and v to its output; they are no edges of this
graph. Its results depend on the order of sets in memory; these do not.

References:
    Conmy et al. 2023, arXiv:2304.14997.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.declarations import Setting
from circuitlab.discovery.acdc_search import Costs, Search, search
from circuitlab.discovery.averages import scores_of
from circuitlab.discovery.eap import score_eap
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, MetricError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric, resolve
from circuitlab.models.steps import heads_interact
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment

OBJECTIVES = ("kl", "metric")
# The threshold where none is given, as a share of the empty circuit's cost.
SHARE = 0.01
# Searches that a bisection may take, and the range of thresholds it begins with, as shares of the empty circuit's cost.
BISECTIONS = 16
# Metrics of the second scores where the metric has no gradient in the clean run.
SECOND_METRICS = ("logit_diff", "log_prob")
RANGE = (1e-5, 1.0)


def score_acdc(
    experiment: Experiment,
    *,
    threshold: Annotated[float | None, Setting(what="rise of the cost from which an edge is kept")] = None,
    n_edges: Annotated[int | None, Setting(what="instead: maximum number of edges, by bisection", least=1)] = None,
    sweep: Annotated[int | None, Setting(what="instead: number of thresholds to rank by", least=2, most=1000)] = None,
    objective: Annotated[str, Setting(what="the cost", allowed=OBJECTIVES)] = "kl",
    speculate: Annotated[int | None, Setting(what="tests a batch; 1: one at a time", least=1, most=10_000)] = None,
) -> EdgeScores:
    """Search for the circuit whose edges each raise the cost by the threshold when cut; see the module.

    Args:
        experiment: The examples; each test is a mean over all of them. Its metric is the cost with objective "metric".
        threshold: Rise of the cost from which an edge is kept, in the unit of the cost; by default a hundredth of the
            difference between empty circuit and whole model.
        n_edges: Instead: maximum number of edges; the circuit has as many as bisection over the threshold finds.
        sweep: Instead: number of thresholds, evenly spaced on a logarithmic scale from 1e-5 to 1 times that difference.
        objective: "kl": divergence from the whole model, summed over the judged positions of answers of several
            tokens. "metric": the metric.
        speculate: Tests a batch, 1 for one at a time; by default adapted to the number of correct predictions. The
            circuit does not depend on it.

    Returns:
        Scores in the unit of the cost, nats for "kl", with `chosen` the circuit; `checks` has the threshold, the
        numbers of tests, batches and circuits of the search (of all searches together), and the circuit's cost.

    Raises:
        UnknownNameError: No such objective or ablation.
        ConfigError: More than one of `threshold`, `n_edges` and `sweep`, or one out of range.
        MetricError: The whole model and the empty circuit cost the same.

    References:
        Conmy et al. 2023, arXiv:2304.14997.
    """
    layout = Layout.of(experiment.model.spec)
    check_acdc(threshold=threshold, n_edges=n_edges, sweep=sweep)
    if n_edges is not None and not 1 <= n_edges <= layout.n_edges:
        raise ConfigError(f"n_edges is {n_edges}; the graph has {layout.n_edges} edges, so 1 to that many.")
    # Of answers of several tokens the divergence is summed over the judged positions.
    judged_by = replace(resolve("kl"), whole_answer=True) if objective == "kl" else experiment.metric
    searches = _Searches(experiment.measured_by(judged_by), speculate)
    if sweep is not None:
        scores = searches.swept(_spread(searches.gap, sweep))
    elif n_edges is not None:
        scores = searches.scores(searches.of_size(n_edges))
    else:
        scores = searches.scores(searches.at(SHARE * searches.gap if threshold is None else threshold))
    known = searches.estimates if judged_by.name == experiment.metric.name else None
    return _with_second_scores(scores, searches.tested, experiment, known)


def sweep_acdc(experiment: Experiment, thresholds: Sequence[float]) -> EdgeScores:
    """Score each edge by the largest of these thresholds at which it is kept; 0 where it never is.

    This ranks the edges for a curve over thresholds (AUROC), which a single search cannot.

    Args:
        experiment: The examples. Its metric is the cost, negated where more is better.
        thresholds: Positive numbers, in the unit of the cost.

    Returns:
        Scores in the unit of the cost, without a chosen circuit.

    Raises:
        ConfigError: No thresholds, or one that is not positive.
    """
    if not len(thresholds) or min(thresholds) <= 0:
        raise ConfigError(f"thresholds are {list(thresholds)}; a sweep takes at least one, all of them positive.")
    searches = _Searches(experiment, None)
    return _with_second_scores(searches.swept(thresholds), searches.tested, experiment, searches.estimates)


class _Searches:
    """Searches on one data set.

    Args:
        experiment: The examples, and the metric that is the cost.
        speculate: Tests a batch.

    Attributes:
        estimates: First-order effects, to predict outcomes from; None for sequential searches, or without a gradient.
        tested: Edges that a search cut for their own cost, or kept to its end.
        counts: Numbers of tests, batches and circuits of all searches.
    """

    def __init__(self, experiment: Experiment, speculate: int | None) -> None:
        model = experiment.model
        interact = any(heads_interact(model, layer) for layer in range(model.spec.n_layers))
        silent_cuts = interact or experiment.replacement.kind != "corrupt"
        self.costs, self.layout = Costs(experiment, silent_cuts=silent_cuts), Layout.of(model.spec)
        self.speculate, self.counts = speculate, Counter[str]()
        self.estimates = None if speculate == 1 else _first_order(experiment, experiment.metric)
        self.tested: Bool[np.ndarray, "writer reader"] = np.zeros_like(real_edges(self.layout))

    @property
    def gap(self) -> float:
        """Cost of the empty circuit minus that of the whole model."""
        gap = float(self.costs.empty.mean() - self.costs.whole.mean())
        if gap <= 0:
            raise MetricError(
                f"the empty circuit costs {gap:.4g} more than the whole model, so that no threshold follows from it. "
                "Check answers and corruption, or give threshold=."
            )
        return gap

    def at(self, threshold: float) -> Search:
        """The search at one threshold."""
        found = search(self.costs, self.layout, threshold, speculate=self.speculate, estimates=self.estimates)
        self.tested |= found.mask
        for answer in found.answers:
            self.tested[answer.edge] |= answer.cut
        self.counts.update(questions=len(found.answers), batches=found.batches, circuits=found.circuits)
        return found

    def of_size(self, n_edges: int) -> Search:
        """The search that keeps most edges, but no more than `n_edges`."""
        low, high = (np.log(share * self.gap) for share in RANGE)
        best: Search | None = None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = self.at(float(np.exp(middle)))
            kept = int(found.mask.sum())
            if kept > n_edges:
                low = middle
                continue
            high = middle
            if best is None or kept > best.mask.sum():
                best = found
            if kept == n_edges:
                break
        if best is None:
            raise ConfigError(
                f"no threshold up to the cost of the empty circuit, {self.gap:.4g}, keeps as few as {n_edges} edges. "
                "Ask for more, or give threshold=."
            )
        return best

    def swept(self, thresholds: Sequence[float]) -> EdgeScores:
        """The largest threshold at which each edge is kept."""
        values = np.zeros((len(self.layout.writers), len(self.layout.readers)))
        for threshold in sorted(thresholds):
            values[self.at(threshold).mask] = threshold
        return self._scores(values, np.zeros_like(values), {})

    def scores(self, found: Search) -> EdgeScores:
        """One search as scores."""
        values, errors = np.zeros(found.mask.shape), np.zeros(found.mask.shape)
        for answer in found.answers:
            if found.mask[answer.edge] or answer.cut:
                values[answer.edge], errors[answer.edge] = answer.effect, answer.standard_error
        return self._scores(values, errors, {"threshold": found.threshold, "cost": found.cost}, chosen=found.mask)

    def _scores(self, values: np.ndarray, errors: np.ndarray, checks: dict[str, float], **more: Any) -> EdgeScores:
        checks = {**checks, **{name: float(count) for name, count in self.counts.items()}}
        return scores_of(self.costs.experiment, "acdc", values, errors, checks=checks, **more)


def _first_order(experiment: Experiment, *metrics: Metric) -> Float[np.ndarray, "writer reader"] | None:
    """First-order effects of cutting edges on the first metric with a gradient in the clean run; None without one."""
    for metric in metrics:
        if not metric.smooth or metric.needs_reference:
            continue
        try:
            effects = score_eap(experiment.quiet().measured_by(metric)).values
        except MetricError:
            continue
        return effects if metric.higher_is_better else -effects
    return None


def _with_second_scores(
    scores: EdgeScores,
    tested: Bool[np.ndarray, "writer reader"],
    experiment: Experiment,
    known: Float[np.ndarray, "writer reader"] | None,
) -> EdgeScores:
    """The scores with those of EAP for edges that were not tested; those by the experiment's metric may be `known`."""
    metric = experiment.metric
    others = (resolve(name) for name in SECOND_METRICS if name != metric.name)
    second = _first_order(experiment, metric, *others) if known is None else known
    untested = real_edges(scores.layout) & ~tested
    checks = {**scores.checks, "edges_never_asked": float(untested.sum())}
    return replace(scores, second_scores=np.where(untested, 0.0 if second is None else second, np.nan), checks=checks)


def _spread(gap: float, n: int) -> list[float]:
    low, high = (share * gap for share in RANGE)
    return [float(threshold) for threshold in np.geomspace(low, high, n)]


def searches_once(*, sweep: object, **others: object) -> bool:
    """Whether these options give one circuit, and not a ranking over several thresholds.

    Returns:
        Whether they do.
    """
    return sweep is None


def check_acdc(**given: object) -> None:
    """Reject options that exclude each other.

    Raises:
        ConfigError: More than one of `threshold`, `n_edges` and `sweep`.
    """
    given = {name: given[name] for name in ("threshold", "n_edges", "sweep")}
    there = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(there) > 1:
        raise ConfigError(f"{' and '.join(there)} are given; acdc takes one of threshold, n_edges and sweep.")
