"""ACDC: automated circuit discovery, edge by edge from the logits backwards.

1. Begin with the whole model. Its cost is what is to be kept small: the KL divergence from the whole model's
   predictions (as in the paper), or the metric with its sign turned where more is better.
2. Take the edges in a fixed order, from the logits backwards (`acdc_walk`). Cut each, on top of all that were cut
   before. Where the mean cost over all examples rises by less than the threshold it stays cut, else it is restored.
3. A node that no kept edge enters any more is cut out of those behind it; about one that no kept edge leaves nothing
   is asked.

What is left is the circuit (`EdgeScores.chosen`). One threshold gives one circuit; `n_edges` looks for the threshold
by bisection. An edge's score in one search is how much the cost rose when it was cut from the circuit that it was asked
about: kept edges have at least the threshold, cut ones less. Positive: the edge helps. Edges that were never asked
about, or were cut later with their node, score 0 and have a second score, by which they rank below all others: that of
EAP on the same pairs, one gradient in the clean run (`EdgeScores.second_scores`). It is of the metric, and of
`logit_diff` where the metric has no gradient in the clean run. A sweep over thresholds (`sweep=`) scores an edge by the
largest threshold at which it was kept instead.

The published code asks about three more kinds of edges, from a head's q, k and v to its output; they are no edges of
this graph. Its answers depend on the order of sets in memory; these do not.

References:
    Conmy et al. 2023, arXiv:2304.14997.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.declarations import Setting
from circuitlab.discovery.acdc_search import Costs, Search, search
from circuitlab.discovery.eap import score_eap
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, MetricError
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.models.steps import heads_interact
from circuitlab.parts import Layout
from circuitlab.patching.circuit_values import CircuitValues
from circuitlab.patching.experiment import Experiment

OBJECTIVES = ("kl", "metric")
# Share of the empty circuit's cost that an edge must be worth where no threshold is given.
SHARE = 0.01
# Searches that a bisection may take, and the range of thresholds it begins with, as shares of the empty circuit's cost.
BISECTIONS = 16
# What edges that were never asked about are ranked by, where the metric has no gradient in the clean run.
GUESSED_BY = ("logit_diff", "log_prob")
RANGE = (1e-5, 1.0)


def score_acdc(
    experiment: Experiment,
    *,
    threshold: Annotated[float | None, Setting(what="what an edge must be worth to be kept")] = None,
    n_edges: Annotated[int | None, Setting(what="instead: at most so many edges, by bisection", least=1)] = None,
    sweep: Annotated[int | None, Setting(what="instead: so many thresholds, to rank edges", least=2, most=1000)] = None,
    objective: Annotated[str, Setting(what="what cutting costs", allowed=OBJECTIVES)] = "kl",
    speculate: Annotated[int | None, Setting(what="questions a batch; 1: one at a time", least=1, most=10_000)] = None,
) -> EdgeScores:
    """Search for the circuit whose edges each are worth the threshold; see the module.

    Args:
        experiment: The examples; every one counts in every question. Its metric is the cost with objective "metric".
        threshold: What an edge must be worth, in the unit of the cost; by default a hundredth of what the empty
            circuit costs more than the whole model.
        n_edges: Instead: at most so many edges, as many as bisection over the threshold finds.
        sweep: Instead: so many thresholds, evenly spaced on a logarithmic scale between 1e-5 and 1 times that cost.
        objective: "kl": divergence from the whole model. "metric": the metric.
        speculate: Questions a batch, 1 for one at a time; by default as many as come true. The circuit does not
            depend on it.

    Returns:
        Scores in the unit of the cost, nats for "kl", with `chosen` the circuit; `checks` tell the threshold, the
        questions, batches and circuits of the search (of all searches together), and the circuit's cost.

    Raises:
        UnknownNameError: No such objective or ablation.
        ConfigError: More than one of `threshold`, `n_edges` and `sweep`, or one out of range.
        MetricError: The whole model and the empty circuit cost the same.
    """
    layout = Layout.of(experiment.model.spec)
    check_acdc(threshold=threshold, n_edges=n_edges, sweep=sweep)
    if n_edges is not None and not 1 <= n_edges <= layout.n_edges:
        raise ConfigError(f"n_edges is {n_edges}; the graph has {layout.n_edges} edges, so 1 to that many.")
    judged_by = resolve("kl") if objective == "kl" else experiment.metric
    asking = _Asking.on(experiment.measured_by(judged_by), speculate)
    if sweep is not None:
        scores = asking.swept(_spread(asking.gap, sweep))
    elif n_edges is not None:
        scores = asking.scores(asking.of_size(n_edges))
    else:
        scores = asking.scores(asking.at(SHARE * asking.gap if threshold is None else threshold))
    known = asking.estimates if judged_by.name == experiment.metric.name else None
    return _with_second_scores(scores, asking.answered, experiment, known)


def sweep_acdc(experiment: Experiment, thresholds: Sequence[float]) -> EdgeScores:
    """Give each edge the largest of these thresholds at which it is kept; 0 where it never is.

    This ranks the edges for a curve over thresholds (AUROC), which a single search cannot.

    Args:
        experiment: The examples. Its metric is the cost: itself where less is better, else with its sign turned.
        thresholds: Positive numbers, in the unit of the cost.

    Raises:
        ConfigError: No thresholds, or one that is not positive.
    """
    if not len(thresholds) or min(thresholds) <= 0:
        raise ConfigError(f"thresholds are {list(thresholds)}; a sweep takes at least one, all of them positive.")
    asking = _Asking.on(experiment, None)
    return _with_second_scores(asking.swept(thresholds), asking.answered, experiment, asking.estimates)


@dataclass(slots=True, eq=False)
class _Asking:
    """Searches on one data set.

    Attributes:
        answered: Edges that a search cut for their own cost, or kept to its end.
    """

    costs: Costs
    layout: Layout
    speculate: int | None
    estimates: Float[np.ndarray, "writer reader"] | None
    answered: Bool[np.ndarray, "writer reader"]
    questions: int = 0
    batches: int = 0
    circuits: int = 0

    @classmethod
    def on(cls, experiment: Experiment, speculate: int | None) -> _Asking:
        """With what answers are predicted from: a gradient in the clean run, or nothing."""
        model, layout = experiment.model, Layout.of(experiment.model.spec)
        interact = any(heads_interact(model, layer) for layer in range(model.spec.n_layers))
        costs = Costs(CircuitValues(experiment), silent_cuts=interact or experiment.replacement.kind != "corrupt")
        nothing = np.zeros((len(layout.writers), len(layout.readers)), dtype=bool)
        return cls(costs, layout, speculate, None if speculate == 1 else _estimates(experiment), nothing)

    @property
    def gap(self) -> float:
        """What the empty circuit costs more than the whole model."""
        gap = float(self.costs.empty.mean() - self.costs.whole.mean())
        if gap <= 0:
            raise MetricError(
                f"the empty circuit costs {gap:.4g} more than the whole model, so that no threshold follows from it. "
                "Check answers and corruption, or give threshold=."
            )
        return gap

    def at(self, threshold: float) -> Search:
        """The search at one threshold."""
        found = search(
            self.costs,
            self.layout,
            threshold,
            speculate=self.speculate,
            estimates=self.estimates,
        )
        self.answered |= found.mask
        for answer in found.answers:
            self.answered[answer.edge] |= answer.cut
        self.questions += len(found.answers)
        self.batches += found.batches
        self.circuits += found.circuits
        return found

    def of_size(self, n_edges: int) -> Search:
        """The search that keeps most edges and no more than these."""
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
        return self._made(values, np.zeros_like(values), chosen=None, checks={})

    def scores(self, found: Search) -> EdgeScores:
        """One search as scores."""
        values = np.zeros(found.mask.shape)
        errors = np.zeros(found.mask.shape)
        for answer in found.answers:
            if found.mask[answer.edge] or answer.cut:
                values[answer.edge], errors[answer.edge] = answer.effect, answer.standard_error
        checks = {"threshold": found.threshold, "cost": found.cost}
        return self._made(values, errors, found.mask, checks)

    def _made(
        self,
        values: Float[np.ndarray, "writer reader"],
        errors: Float[np.ndarray, "writer reader"],
        chosen: np.ndarray | None,
        checks: dict[str, float],
    ) -> EdgeScores:
        experiment = self.costs.values.experiment
        asked = {"questions": self.questions, "batches": self.batches, "circuits": self.circuits}
        return EdgeScores(
            spec=experiment.model.spec,
            values=values,
            standard_error=errors,
            method="acdc",
            metric=experiment.metric.name,
            n_examples=experiment.n_examples,
            checks={**checks, **{name: float(count) for name, count in asked.items()}},
            chosen=chosen,
        )


def _estimates(experiment: Experiment) -> Float[np.ndarray, "writer reader"] | None:
    """First-order effects of cutting edges; None where the metric has no gradient in the clean run."""
    metric = experiment.metric
    if not metric.smooth or metric.needs_reference:
        return None
    try:
        effects = score_eap(experiment.quiet()).values
    except MetricError:
        return None
    return effects if metric.higher_is_better else -effects


def _with_second_scores(
    scores: EdgeScores,
    answered: Bool[np.ndarray, "writer reader"],
    experiment: Experiment,
    known: Float[np.ndarray, "writer reader"] | None,
) -> EdgeScores:
    """The scores with those of EAP for edges without an answer, by the first metric that has a gradient there.

    Those by the metric may be `known`.
    """
    metric, second = experiment.metric, np.zeros(answered.shape) if known is None else known
    for judged_by in () if known is not None else dict.fromkeys((metric.name, *GUESSED_BY)):
        judged = metric if judged_by == metric.name else resolve(judged_by)
        if not judged.smooth or judged.needs_reference:
            continue
        try:
            found = score_eap(experiment.quiet().measured_by(judged)).values
        except MetricError:
            continue
        second = found if judged.higher_is_better else -found
        break
    unanswered = real_edges(scores.layout) & ~answered
    checks = {**scores.checks, "edges_never_asked": float(unanswered.sum())}
    return replace(scores, second_scores=np.where(unanswered, second, np.nan), checks=checks)


def _spread(gap: float, n: int) -> list[float]:
    low, high = (share * gap for share in RANGE)
    return [float(threshold) for threshold in np.geomspace(low, high, n)]


def check_acdc(**given: object) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: More than one of `threshold`, `n_edges` and `sweep`.
    """
    given = {name: given[name] for name in ("threshold", "n_edges", "sweep")}
    there = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(there) > 1:
        raise ConfigError(f"{' and '.join(there)} are given; acdc takes one of threshold, n_edges and sweep.")
