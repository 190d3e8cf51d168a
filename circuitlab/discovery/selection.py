"""Select a circuit from scored edges: a number of edges, a threshold, or the smallest circuit that reaches a target.

Edges are ranked by score or its absolute value, all at once, or greedily: the circuit grows from the logits and only
edges into its nodes compete (`greedy_edges`). Edges that a search did not test rank below all others, by a second score
(`EdgeScores.second_scores`); edges whose score is 0 are only selected as part of a method's own circuit. Selected edges
that are on no path from the input to the logits are pruned.

The smallest circuit is searched by running circuits of growing size. Faithfulness is not monotonic in size and can
exceed 1, so a circuit is accepted only if its faithfulness is between the target and as far above 1 as the target is
below. Sizes grow by a fifth until one fits; then evenly spaced sizes between it and the last misfit are run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from circuitlab import stats
from circuitlab.data.batching import Pairs, prompt_keys
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import GraphError
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import prune
from circuitlab.graphs.ranking import mask_of
from circuitlab.graphs.selection import USUAL_TARGET, Selection, SelectionRule
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback

GROWTH = 1.2
AT_ONCE = 6
REFINEMENTS = 12

# The parts of a model's shape that scores of edges depend on; files of earlier versions have no others.
OF_GRAPH = ("name", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_vocab", "parallel", "has_mlp", "causal")


@model_function
def select(
    model: Model,
    scores: EdgeScores,
    pairs: Pairs,
    target: float | None = None,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    signed: bool = False,
    greedy: bool | None = None,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
    seed: int = 0,
    allow_weak_gap: bool = False,
    budget: int | None = None,
    progress: Progress | bool | None = None,
) -> Circuit:
    """The smallest circuit of top edges that reaches the target on these pairs, pruned to what connects.

    If the method brought a circuit of its own (`scores.chosen`), that is selected, unless `target`, `n_edges` or
    `threshold` is given.

    Args:
        model: The model that was scored.
        scores: Scores of its edges.
        pairs: The discovery pairs; held-out pairs are for `evaluate`.
        target: Faithfulness to reach, above 0 and at most 1. Where neither this nor `n_edges` nor `threshold` is given,
            the method's own circuit is selected, if there is one, and else the target is 0.9.
        n_edges: Number of top edges to select instead (before pruning); fewer where fewer have a score other than 0.
        threshold: Smallest score of the edges to select instead; edges that were not tested have no score in this unit
            and are not selected.
        signed: Rank by score; else by its absolute value, which keeps edges that hurt along with those that help.
        greedy: Grow the circuit from the logits; by default only for scores that are shares of a reader (`ifr`), which
            are not comparable between readers.
        metric: Metric of the faithfulness, as in `evaluate`: by default that of the task that drew the pairs, else
            `logit_diff`, independently of the metric of the scores.
        ablation: The values of excluded edges, as in `evaluate`. Where it is not that of the scores,
            `circuit.selection.warnings` says so.
        reference: Prompts to take means over; none of them may be among `pairs`.
        seed: Random seed of noise.
        allow_weak_gap: Accept pairs without a significant gap between clean run and empty circuit.
        budget: Bytes of memory for a packed run.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).

    Returns:
        The circuit; all its edges are on paths from the input to the logits. `circuit.selection` has the number of
        selected edges (`nominal`) and of those that remain after pruning (`achieved`); for a target, the achieved
        faithfulness, its interval and its metric; and in `warnings` the parts of the rule that were not met.

    Raises:
        UnknownNameError: No such metric or ablation.
        ConfigError: The target is not above 0 and at most 1, `n_edges` is out of range, the threshold is no number or
            both are given; `signed` or `greedy` where the method's own circuit is selected; `evaluate` rejects ablation
            or reference.
        GraphError: The scores are of another model, or all of them are 0.
        MetricError: There is a target, and the gap between clean run and empty circuit is not significant
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
    """Select a circuit on an experiment's pairs, as `select` does; pairs are run for a target only.

    Returns:
        The circuit, as of `select`.

    Raises:
        GraphError: The scores are of another model, or all of them are 0.
        MetricError: There is a target, and the gap between clean run and empty circuit is not significant.
    """
    ours = experiment.model.spec
    if any(getattr(scores.spec, name) != getattr(ours, name) for name in OF_GRAPH):
        raise GraphError(f"the scores are of model {scores.spec.name!r}, not of {ours.name!r}.")
    rule.check_size(scores.layout.n_edges)
    chosen = rule.is_chosen(scores.chosen is not None)
    greedy = scores.per_reader if rule.greedy is None else rule.greedy
    rule = replace(rule, greedy=greedy)
    order = ranking(scores, signed=rule.signed, greedy=greedy)
    if rule.n_edges is not None:
        return _circuit(scores, order[: rule.n_edges], rule)
    if rule.threshold is not None:
        keys = scores.values if rule.signed else np.abs(scores.values)
        # Pruning removes edges above it that no other edge above it continues.
        return _circuit(scores, order[(scores.tested & (keys >= rule.threshold))[tuple(order.T)]], rule)
    if chosen and scores.chosen is not None:
        return _circuit(scores, np.argwhere(scores.chosen), rule, "chosen")
    experiment.gap  # noqa: B018 - rejects pairs without a gap
    size, values = _smallest(experiment, scores.layout, order, rule.target or USUAL_TARGET)
    return _measured(_circuit(scores, order[:size], rule), values, experiment)


def with_faithfulness(experiment: Experiment, circuit: Circuit) -> Circuit:
    """Add the faithfulness on the discovery pairs to `circuit.selection`; selection by a target measures it already.

    Args:
        experiment: The pairs of the selection.
        circuit: A circuit of `select`.

    Returns:
        The circuit; unchanged if its faithfulness was measured.
    """
    if circuit.selection is None or circuit.selection.faithfulness is not None:
        return circuit
    return _measured(circuit, experiment.values(circuit.mask[None], None)[0], experiment)


def ranking(scores: EdgeScores, *, signed: bool, greedy: bool) -> Int[np.ndarray, "edge 2"]:
    """The edges that can be selected, best first.

    Returns:
        Row and column of each edge.

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
    """The edges selected by a rule, or as `by` names it, pruned."""
    circuit = scores.circuit(prune(mask_of(taken, scores.layout), scores.layout))
    criteria = {"target": rule.aim, "n_edges": rule.n_edges, "threshold": rule.threshold, "chosen": len(taken)}
    given = {name: value for name, value in criteria.items() if value is not None}
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
        scores_ablation=scores.ablation,
        sign=scores.sign,
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


def _smallest(
    experiment: Experiment, layout: Layout, order: Int[np.ndarray, "edge 2"], target: float
) -> tuple[int, Float[np.ndarray, " example"]]:
    """The number of edges of the smallest circuit found, all where none fits; and its metric, per example."""

    def run(sizes: Sequence[int]) -> Iterator[tuple[int, Float[np.ndarray, " example"], bool]]:
        """Each size with the metric of its circuit, and whether its faithfulness fits."""
        masks = np.stack([prune(mask_of(order[:size], layout), layout) for size in sizes])
        values, empty = experiment.values(masks, None), experiment.empty
        reached = stats.ratio_of_means(values - empty, experiment.clean - empty)
        fits = (target <= reached) & (reached <= 2 - target + 1e-9)
        return zip(sizes, values, fits.tolist(), strict=True)

    sizes, last_miss, missed = _growing(len(order)), 0, np.zeros(0)
    for start in range(0, len(sizes), AT_ONCE):
        chunk = sizes[start : start + AT_ONCE]
        experiment.progress("select", chunk[-1], len(order))
        for size, values, fits in run(chunk):
            if fits:
                tries = min(REFINEMENTS, size - last_miss)
                between = sorted({int(n) for n in np.linspace(last_miss + 1, size, tries)} | {size})
                return next((one, metric) for one, metric, fits in run(between) if fits or one == size)
            last_miss, missed = size, values
    return len(order), missed


def _growing(total: int) -> list[int]:
    sizes, size = [], 1.0
    while int(size) < total:
        if not sizes or int(size) > sizes[-1]:
            sizes.append(int(size))
        size = max(size * GROWTH, size + 1)
    return [*sizes, total]
