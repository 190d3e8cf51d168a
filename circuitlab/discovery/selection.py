"""Select a circuit out of scored edges: so many, those above a threshold, or the smallest that reaches a target.

Edges are ranked by score or its absolute value, all at once, or greedily: the circuit grows from the logits and only
edges into what it has reached compete (`greedy_edges`). Edges that a search never asked about rank below all others, by
a second score (`EdgeScores.second_scores`); edges whose score is 0 are never taken, but where a method's own circuit
has them. Whatever is taken is pruned to what connects.

The smallest circuit is searched by asking the model at growing sizes. Faithfulness does not grow steadily with size and
can overshoot 1, so a circuit is taken only if its faithfulness lies between the target and as far above 1 as the target
is below. Sizes grow by a fifth until one fits; then those between it and the last one that did not are tried evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitlab import stats
from circuitlab.arguments import checked
from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import prompt_keys
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune
from circuitlab.graphs.ranking import mask_of
from circuitlab.graphs.selection import USUAL_TARGET, Selection, SelectionRule
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback, reports_progress

GROWTH = 1.2
AT_ONCE = 6
REFINEMENTS = 12

# What the scores of edges depend on; files of earlier versions do not keep the rest of a model's shape.
OF_GRAPH = ("name", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_vocab", "parallel", "has_mlp", "causal")


@checked
@in_ordinary_modes
@reports_progress
def select(
    model: Model,
    scores: EdgeScores,
    pairs: PairSet | PairBatch,
    target: float | None = None,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    signed: bool = False,
    greedy: bool | None = None,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    allow_weak_gap: bool = False,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> Circuit:
    """The smallest circuit of top edges that reaches the target on these pairs, pruned to what connects.

    A method that chose a circuit of its own (`scores.chosen`) is taken at its word, unless `target`, `n_edges`
    or `threshold` ask for another.

    Args:
        model: The model that was scored.
        scores: Scores of its edges.
        pairs: The discovery pairs; held-out pairs are for `evaluate`.
        target: Faithfulness to reach, above 0 and at most 1. Where neither this nor `n_edges` nor `threshold` is given,
            the method's own circuit is taken, if it brought one, and else 0.9 is to be reached.
        n_edges: Take this many top edges instead (before pruning), whatever their faithfulness; fewer where fewer have
            a score other than 0.
        threshold: Take the edges that score at least this much instead, whatever their faithfulness; edges that were
            never asked about have no score in this unit and are not taken.
        signed: Rank by score; else by its absolute value, which keeps edges that hurt along with those that help.
        greedy: Let the circuit grow from the logits; by default only for scores that are shares of a reader (`ifr`),
            which cannot be compared from one reader to the other.
        metric: Metric of the faithfulness, as in `evaluate`: by default that of the task that drew the pairs, else
            `logit_diff`, whatever the edges were scored by.
        ablation: What excluded edges carry, as in `evaluate`.
        reference: Prompts that means are taken of; none of them may be among `pairs`.
        seed: Of noise.
        allow_weak_gap: Look for a target's circuit also where the pairs do not tell clean run and empty circuit apart.
        budget: Bytes that a packed run may take.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        The circuit; its edges all lie on paths from the input to the logits. `circuit.selection` has the number of
        edges that were taken (`nominal`) and that are left after pruning (`achieved`), where a target was asked for the
        faithfulness reached, its interval and its metric, and in `warnings` what was asked for and not reached.

    Raises:
        UnknownNameError: No such metric or ablation.
        ConfigError: The target is not above 0 and at most 1, `n_edges` is out of range, the threshold is no number or
            both are given; what `evaluate` refuses of ablation and reference.
        GraphError: The scores are of another model, or all of them are 0.
        MetricError: A target is asked for, and the metric does not tell the clean run and the empty circuit apart
            (`circuitlab.patching.gap`).

    Example:
        >>> from circuitlab import load_model, load_task, score_edges, select
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> scores = score_edges(model, pairs.discovery, "eap")
        >>> select(model, scores, pairs.discovery, n_edges=20).n_edges <= 20
        True
    """
    rule = SelectionRule(target=target, n_edges=n_edges, threshold=threshold, signed=signed, greedy=greedy)
    experiment = Experiment(model, pairs, metric, ablation, reference, seed, allow_weak_gap, budget, callback(progress))
    return select_circuit(experiment, scores, rule)


def select_circuit(experiment: Experiment, scores: EdgeScores, rule: SelectionRule) -> Circuit:
    """Select a circuit on an experiment's pairs, as `select` does; pairs are run only where a target is asked for."""
    ours = experiment.model.spec
    if any(getattr(scores.spec, name) != getattr(ours, name) for name in OF_GRAPH):
        raise GraphError(f"the scores are of model {scores.spec.name!r}, not of {ours.name!r}.")
    rule.check_size(scores.layout.n_edges)
    greedy = scores.per_reader if rule.greedy is None else rule.greedy
    rule = replace(rule, greedy=greedy)
    order = ranking(scores, signed=rule.signed, greedy=greedy)
    if rule.n_edges is not None:
        return _circuit(scores, order[: rule.n_edges], rule)
    if rule.threshold is not None:
        keys = scores.values if rule.signed else np.abs(scores.values)
        # Edges above it that nothing above it leads on from fall to the pruning, greedily or not.
        return _circuit(scores, order[(scores.asked & (keys >= rule.threshold))[tuple(order.T)]], rule)
    if rule.target is None and scores.chosen is not None:
        return _circuit(scores, np.argwhere(scores.chosen), rule, "chosen")
    experiment.gap  # noqa: B018 - refuses pairs on which there is nothing to explain
    search = _Search(experiment, scores, order)
    size = search.smallest(rule.target or USUAL_TARGET)
    return _measured(_circuit(scores, order[:size], rule), search.values[size], experiment)


def with_faithfulness(experiment: Experiment, circuit: Circuit) -> Circuit:
    """The circuit with its faithfulness on its discovery pairs in `circuit.selection`, which a target measures anyway.

    Args:
        experiment: The pairs it was selected on.
        circuit: A circuit that `select` gave; as it is if its faithfulness was measured.
    """
    if circuit.selection is None or circuit.selection.faithfulness is not None:
        return circuit
    return _measured(circuit, experiment.values(circuit.mask[None], None)[0], experiment)


def ranking(scores: EdgeScores, *, signed: bool, greedy: bool) -> Int[np.ndarray, "edge 2"]:
    """Row and column of every edge that a selection may take, in the order in which it takes them.

    Raises:
        GraphError: No edge has a score other than 0.
    """
    if not scores.nonzero.any():
        raise GraphError(f"no edge has a score other than 0 (method {scores.method!r}): there is nothing to select.")
    if greedy:
        return scores.grown(signed)
    order = scores.ranked(signed)
    return order[scores.nonzero[tuple(order.T)]]


def _circuit(
    scores: EdgeScores,
    taken: Int[np.ndarray, "taken 2"],
    rule: SelectionRule,
    by: str | None = None,
) -> Circuit:
    """The edges that were taken by a rule (or `by` another way than it asks), pruned."""
    circuit = scores.circuit(prune(mask_of(taken, scores.layout), scores.layout))
    asks = {"target": rule.aim, "n_edges": rule.n_edges, "threshold": rule.threshold, "chosen": len(taken)}
    given = {name: value for name, value in asks.items() if value is not None}
    by = by or next(iter(given))
    selection = Selection(
        rule=by,
        asked=given[by],
        signed=rule.signed,
        greedy=bool(rule.greedy),
        nominal=len(taken),
        achieved=circuit.n_edges,
        n_nodes=len(circuit.nodes),
        n_scored=int(scores.nonzero.sum()),
    )
    return replace(circuit, selection=selection)


def _measured(circuit: Circuit, values: Float[np.ndarray, " example"], experiment: Experiment) -> Circuit:
    """The circuit with its metric on the discovery pairs as a faithfulness, and with what that was measured on."""
    assert circuit.selection is not None
    gained, gap = values - experiment.empty, experiment.clean - experiment.empty
    interval = stats.ratio_interval(gained, gap, experiment.seed)
    selection = replace(
        circuit.selection,
        faithfulness=float(stats.ratio_of_means(gained, gap)),
        interval=(float(interval.low), float(interval.high)),
        metric=experiment.metric.name,
        ablation=experiment.replacement.kind,
        n_pairs=len(values),
        prompts=frozenset(key for keys in prompt_keys(experiment.pairs) for key in keys),
    )
    return replace(circuit, selection=selection)


class _Search:
    """Asks for the faithfulness of top-n circuits, each size once.

    Attributes:
        values: The metric of each size's circuit that was run, per example.
    """

    def __init__(self, experiment: Experiment, scores: EdgeScores, order: Int[np.ndarray, "edge 2"]) -> None:
        self._experiment, self._scores, self._order = experiment, scores, order
        self.values: dict[int, Float[np.ndarray, " example"]] = {}

    def smallest(self, target: float) -> int:
        """How many edges the smallest circuit found takes; all of them where none fits."""
        total = len(self._order)
        sizes = _growing(total)
        last_miss = 0
        for start in range(0, len(sizes), AT_ONCE):
            chunk = sizes[start : start + AT_ONCE]
            self._experiment.progress("select", chunk[-1], total)
            for size, reached in zip(chunk, self._faithfulness(chunk), strict=True):
                if _fits(reached, target):
                    return self._refined(last_miss, size, target)
                last_miss = size
        return total

    def _refined(self, low: int, high: int, target: float) -> int:
        """The smallest fitting size above `low` and up to `high`, among evenly spaced ones."""
        between = sorted({int(n) for n in np.linspace(low + 1, high, min(REFINEMENTS, high - low))} | {high})
        for size, reached in zip(between, self._faithfulness(between), strict=True):
            if _fits(reached, target):
                return size
        return high

    def _faithfulness(self, sizes: Sequence[int]) -> Float[np.ndarray, " size"]:
        masks = np.stack([self._mask(size) for size in sizes])
        values, empty = self._experiment.values(masks, None), self._experiment.empty
        self.values |= dict(zip(sizes, values, strict=True))
        return stats.ratio_of_means(values - empty, self._experiment.clean - empty)

    def _mask(self, size: int) -> Bool[np.ndarray, "writer reader"]:
        return prune(mask_of(self._order[:size], self._scores.layout), self._scores.layout)


def _fits(faithfulness: float, target: float) -> bool:
    return bool(target <= faithfulness <= 2 - target + 1e-9)


def _growing(total: int) -> list[int]:
    sizes, size = [], 1.0
    while int(size) < total:
        if not sizes or int(size) > sizes[-1]:
            sizes.append(int(size))
        size = max(size * GROWTH, size + 1)
    return [*sizes, total]
