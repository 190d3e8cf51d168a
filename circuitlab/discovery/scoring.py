"""Score every edge by a named method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from circuitlab import names, plugins
from circuitlab.arguments import checked
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.discovery.acdc import check_acdc, score_acdc
from circuitlab.discovery.clean_corrupted import score_clean_corrupted
from circuitlab.discovery.eap import score_eap
from circuitlab.discovery.eap_ig import score_eap_ig
from circuitlab.discovery.eap_ig_activations import score_eap_ig_activations
from circuitlab.discovery.edge_pruning import score_edge_pruning
from circuitlab.discovery.exact import score_exact
from circuitlab.discovery.ifr import score_ifr
from circuitlab.discovery.method import Method, MethodLike, method_of
from circuitlab.discovery.node_scores import LEVELS, NodeScores
from circuitlab.discovery.node_sweep import score_node_sweep
from circuitlab.discovery.random_scores import score_random
from circuitlab.discovery.relp import score_relp
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.ugs import score_ugs
from circuitlab.errors import ConfigError, UnknownNameError, WrongTypeError, shown
from circuitlab.metrics import MetricLike
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike, as_replacement
from circuitlab.progress import Progress, callback, reports_progress
from circuitlab.references import METHOD_SOURCES
from circuitlab.settings import SETTINGS

__all__ = ["METHODS", "Method", "find_method", "score_edges", "score_nodes"]


_OF_GRADIENTS = ("edge", *LEVELS)
IN_THE_CLEAN_RUN = (1.0,)
ON_THE_WAY = tuple(step / 8 for step in range(9))
AXES = ("all", "position", "span")


def _built_in(name: str, score: Callable[..., Any], **about: Any) -> Method:
    """A method of this package, with its line and its paper."""
    return Method(name=name, what=names.METHODS[name], source=METHOD_SOURCES[name][0], score=score, **about)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _built_in(
            "eap-ig",
            score_eap_ig,
            gradients_at=ON_THE_WAY,
            takes=("steps", "axis"),
            levels=_OF_GRADIENTS,
            ablation_why="its path leads from the corrupted prompt's embedding to the clean one's",
        ),
        _built_in("eap", score_eap, gradients_at=IN_THE_CLEAN_RUN, takes=("ablation", "axis"), levels=_OF_GRADIENTS),
        _built_in(
            "eap-ig-activations",
            score_eap_ig_activations,
            gradients_at=ON_THE_WAY,
            takes=("steps", "ablation"),
            levels=("edge", "node", "neuron"),
        ),
        _built_in(
            "clean-corrupted",
            score_clean_corrupted,
            gradients_at=(1.0, 0.0),
            takes=("ablation", "axis"),
            levels=_OF_GRADIENTS,
        ),
        _built_in("exact", score_exact, takes=("ablation", "axis"), levels=("edge", *LEVELS)),
        _built_in("sweep", score_node_sweep),
        _built_in(
            "relp",
            score_relp,
            gradients_at=IN_THE_CLEAN_RUN,
            takes=("ablation", "axis"),
            levels=("edge", "node", "neuron"),
        ),
        _built_in(
            "ifr", score_ifr, reads_corrupt=False, in_metric=False, ablation_why="it looks at the clean run alone"
        ),
        _built_in(
            "random",
            score_random,
            takes=("seed",),
            reads_corrupt=False,
            in_metric=False,
            ablation_why="it looks at no run at all",
        ),
        _built_in("acdc", score_acdc, takes=("ablation",), check=check_acdc, in_metric=False, own_circuit=True),
        _built_in("edge-pruning", score_edge_pruning, takes=("seed",), in_metric=False, own_circuit=True),
        _built_in("ugs", score_ugs, takes=("seed",), in_metric=False),
    )
}


def find_method(method: MethodLike) -> Method:
    """The method that is meant by a name of `METHODS` or of the entry points `circuitlab.methods`, or by an object.

    Args:
        method: A name, a `Method`, or a function of model, pairs and metric (`method_of`).

    Raises:
        UnknownNameError: No method has this name.
        ConfigError: The function does not take these; another package lists a built-in name.
        WrongTypeError: Another package lists something else than a method or a function.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        return method_of(method)
    if method in METHODS:
        return METHODS[method]
    found = plugins.find("methods", method, METHODS)
    if not (isinstance(found, Method) or callable(found)):
        raise WrongTypeError(
            f"method {method!r} of the entry points is {shown(found)}; it must be a Method or a function."
        )
    return replace(found, name=method) if isinstance(found, Method) else method_of(found, method)


def check_serves(method: Method, ablation: AblationLike) -> None:
    """Refuse a method whose scores are about the corrupted run where circuits will be about something else.

    Raises:
        ConfigError: They are.
    """
    if method.reads_corrupt:
        _check_ablation(method, ablation, given=False)


def scored_under(method: Method, experiment: Experiment) -> Experiment:
    """The experiment that edges are scored by where circuits are run under this one.

    Where the scores owe nothing to an ablation, they are made under the corrupted run.

    Raises:
        ConfigError: What `check_serves` refuses.
    """
    check_serves(method, experiment.ablation)
    return experiment if "ablation" in method.takes else experiment.under_corrupt()


@checked
@in_ordinary_modes
@reports_progress
def score_edges(
    model: Model,
    pairs: PairSet | PairBatch,
    method: MethodLike = SETTINGS["method"].default,
    *,
    steps: int = SETTINGS["steps"].default,
    metric: MetricLike | None = None,
    ablation: AblationLike = SETTINGS["ablation"].default,
    reference: PairSet | PairBatch | None = None,
    seed: int = SETTINGS["seed"].default,
    axis: str = "all",
    budget: int | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> EdgeScores:
    """Score every edge of the model's graph.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        method: A name of `METHODS` or of the entry points `circuitlab.methods`, a `Method`, or a function of model,
            pairs and metric that returns `EdgeScores` or a tensor `[writer, reader]`.
        steps: Gradients along the path, for methods that integrate; others take no notice.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        ablation: What a corrupted edge carries: a name of `REPLACEMENTS`, a `Replacement`, or a function of (model,
            batch) that returns every node's output (see `Replacement`); others than the corrupted run for methods whose
            definition has room for them.
        reference: Prompts that means are taken of; none of them may be among `pairs`.
        seed: Of what the method draws, and of noise.
        axis: "all"; "position" or "span" for scores of an edge's tokens at each position or span, for methods that can.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: What the method alone can be told; see its row in `METHODS`.

    Returns:
        Scores in the metric's unit, m(clean) - m(with the edge corrupted): positive where the edge helps. For metrics
        where less is better (`kl`, `rank`) the sign is turned, so that positive helps there too.

    Raises:
        UnknownNameError: No such method, metric, ablation or axis.
        ConfigError: The method has no such option, or cannot take this ablation or axis.
        MetricError: The metric is of no use to the method, or gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import load_model, load_task, score_edges
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> score_edges(model, pairs.discovery, "eap").values.shape  # writer, reader
        (37, 101)
    """
    found = find_method(method)
    experiment = _experiment(
        model, pairs, found, metric, ablation, reference=reference, seed=seed, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    return score(experiment, found, steps=steps, axis=axis, **options)


def score(
    experiment: Experiment,
    method: MethodLike,
    *,
    steps: int = SETTINGS["steps"].default,
    axis: str = "all",
    **options: Any,
) -> EdgeScores:
    """Score every edge on an experiment's pairs; arguments, result and errors as of `score_edges`."""
    found = find_method(method)
    given = _arguments(found, options, steps)
    if axis not in AXES:
        raise UnknownNameError.of("axis", axis, AXES)
    if axis != "all" and "axis" not in found.takes:
        can = ", ".join(name for name, other in METHODS.items() if "axis" in other.takes)
        raise ConfigError(f"method {found.name!r} has no scores by {axis}. Take axis='all', or one of: {can}.")
    if "axis" in found.takes:
        given["axis"] = axis
    scores: EdgeScores = found.score(experiment, **given)
    return scores if experiment.metric.higher_is_better or not found.in_metric else scores.turned()


@checked
@in_ordinary_modes
@reports_progress
def score_nodes(
    model: Model,
    pairs: PairSet | PairBatch,
    method: MethodLike = "eap-ig",
    *,
    level: str = "node",
    steps: int = 5,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> NodeScores:
    """Score every node of the model's graph, or every component of what nodes write; see `score_edges`.

    First-order scores of a node are (a_u - r_u) . dm/da_u, with the gradient at its *output*: the sum of its edges'.

    Args:
        model: A loaded model.
        pairs: A split of a task, or a `PairBatch`.
        method: A name or a `Method`, as in `score_edges`, one that scores nodes.
        level: A name of `LEVELS`: "node"; "neuron" for components, `[writer, d_model]`; "mlp-neuron"
            for single neurons of MLPs, `[layer, neuron]`.
        steps: Gradients along the path, for methods that integrate; others take no notice.
        metric: What is measured at the answer position; by default the metric of the task that drew the pairs,
            else `logit_diff`.
        ablation: What stands in the place of a corrupted value.
        reference: Prompts that means are taken of; none of them may be among `pairs`.
        seed: Of noise.
        budget: Bytes that a packed run may take; a share of what is free by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: What the method alone can be told.

    Returns:
        Scores in the metric's unit, m(clean) - m(with it corrupted): positive where it helps, for metrics where less is
        better too.

    Raises:
        UnknownNameError: No such method, level, metric or ablation.
        ConfigError: The method does not score this level, has no such option or cannot take this ablation.
        MetricError: The metric is of no use to the method, or gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import load_model, load_task, score_nodes
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> score_nodes(model, pairs.discovery, "eap").values.shape  # writer
        (37,)
    """
    found = find_method(method)
    if level not in LEVELS:
        raise UnknownNameError.of("level", level, LEVELS, hint="Edges are scored by score_edges.")
    if level not in found.levels:
        can = ", ".join(name for name, other in METHODS.items() if level in other.levels)
        raise ConfigError(f"method {found.name!r} does not score level {level!r}. Take one of {can}.")
    given = _arguments(found, options, steps)
    experiment = _experiment(
        model, pairs, found, metric, ablation, reference=reference, seed=seed, budget=budget,
        progress=callback(progress),
    )  # fmt: skip
    scores: NodeScores = found.score(experiment, level=level, **given)
    return scores if experiment.metric.higher_is_better or not found.in_metric else scores.turned()


def _experiment(
    model: Model,
    pairs: PairSet | PairBatch,
    method: Method,
    metric: MetricLike | None,
    ablation: AblationLike,
    **about: Any,
) -> Experiment:
    """What the arguments of `score_edges` and `score_nodes` ask for, if the method serves it."""
    _check_ablation(method, ablation, given=about["reference"] is not None)
    return Experiment(model, pairs, metric, ablation, allow_weak_gap=True, **about)


def _arguments(method: Method, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """What a method is called with: its own options, and the number of steps where it takes steps."""
    given = method.read(options)
    return given | {"steps": SETTINGS["steps"].read(steps)} if "steps" in method.takes else given


def _check_ablation(method: Method, ablation: AblationLike, *, given: bool) -> None:
    """Refuse an ablation, or given reference prompts, that a method of the corrupted run alone would ignore."""
    wanted = as_replacement(ablation)
    if "ablation" in method.takes or (wanted.kind == "corrupt" and not given):
        return
    can = ", ".join(name for name, other in METHODS.items() if "ablation" in other.takes)
    asked = f"ablation {wanted.kind!r}" if wanted.kind != "corrupt" else "reference set"
    raise ConfigError(
        f"method {method.name!r} takes no {asked}: {method.ablation_why}. Leave it out"
        f"{f', or take one of {can}' if can else ''}."
    )
