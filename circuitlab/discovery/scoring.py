"""Score every edge, or every node, of a model by a method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitlab.data.batching import Pairs, has_corrupted
from circuitlab.discovery.method import Method, MethodLike, as_scores
from circuitlab.discovery.node_scores import LEVELS, NodeScores
from circuitlab.discovery.registry import (
    METHODS,
    check_ablation,
    check_without_corrupted,
    find_method,
    method_names,
)
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import CircuitLabError, ConfigError, UnknownNameError, in_one_line
from circuitlab.metrics import MetricLike
from circuitlab.models.memory import is_out_of_memory
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import AblationLike
from circuitlab.progress import Progress, callback
from circuitlab.settings import SETTINGS

__all__ = ["METHODS", "Method", "find_method", "score", "score_edges", "score_nodes"]

AXES = ("all", "position", "span")


@model_function
def score_edges(
    model: Model,
    pairs: Pairs,
    method: MethodLike = SETTINGS["method"].default,
    *,
    steps: int = SETTINGS["steps"].default,
    metric: MetricLike | None = None,
    ablation: AblationLike = SETTINGS["ablation"].default,
    reference: Pairs | None = None,
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
        steps: Gradients along the path, for methods that integrate; ignored by others.
        metric: The metric at the answer position; by default that of the task that drew the pairs, else `logit_diff`.
        ablation: The values that a corrupted edge carries: a name of `REPLACEMENTS`, a `Replacement`, or a function of
            (model, batch) that returns every node's output (see `Replacement`). Methods that are defined for the
            corrupted run only reject others.
        reference: Prompts to take means over; none of them may be among `pairs`.
        seed: Random seed of the method, and of noise.
        axis: "all"; "position" or "span" for scores of an edge's tokens at each position or span, for methods that can.
        budget: Bytes of memory for a packed run; by default a share of the free memory.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: Options of the method; see `METHODS[name].options`.

    Returns:
        Scores in the metric's unit, m(clean) - m(with the edge corrupted): positive where the edge helps. For metrics
        where less is better (`kl`, `rank`) scores are negated, so that positive helps there too.

    Raises:
        UnknownNameError: No such method, metric, ablation or axis.
        ConfigError: The method has no such option, or cannot take this ablation or axis, or pairs without corrupted
            prompts.
        MetricError: The method cannot use the metric, or the metric gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import load_model, load_task, score_edges
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> score_edges(model, pairs.discovery, "eap").values.shape  # writer, reader
        (37, 101)
    """
    found = find_method(method)
    if not has_corrupted(pairs):
        check_without_corrupted(found)
    check_ablation(found, ablation, with_reference=reference is not None)
    experiment = Experiment(model, pairs, metric, ablation, reference, seed, True, budget, callback(progress))
    return score(experiment, found, steps=steps, axis=axis, **options)


def score(
    experiment: Experiment,
    method: MethodLike,
    *,
    steps: int = SETTINGS["steps"].default,
    axis: str = "all",
    **options: Any,
) -> EdgeScores:
    """Score every edge on an experiment's pairs; arguments as of `score_edges`.

    Returns:
        The scores.

    Raises:
        CircuitLabError: As `score_edges`.
    """
    found = find_method(method)
    check_options(found, axis=axis, **options)
    return _run(found, experiment, options, steps=steps, axis=axis)


def check_options(method: Method, *, steps: int | None = None, axis: str = "all", **options: Any) -> None:
    """Reject what a method would refuse, before any work.

    Args:
        method: The method.
        steps: Gradients along the path, if they are given; only methods that integrate take them.
        axis: As of `score_edges`.
        options: Options of the method.

    Raises:
        UnknownNameError: No such axis.
        ConfigError: The method has no such option, takes no steps, or has no scores by this axis.
    """
    UnknownNameError.check("axis", axis, AXES)
    if axis != "all" and "axis" not in method.takes:
        can = method_names("axis")
        raise ConfigError(f"method {method.name!r} has no scores by {axis}. Take axis='all', or one of: {can}.")
    if steps is not None and "steps" not in method.takes:
        raise ConfigError(
            f"--steps {steps} goes with methods that integrate ({method_names('steps')}); {method.name!r} does not. "
            "Leave it out."
        )
    if steps is not None:
        SETTINGS["steps"].read(steps)
    method.read(options)


@model_function
def score_nodes(
    model: Model,
    pairs: Pairs,
    method: MethodLike = "eap-ig",
    *,
    level: str = "node",
    steps: int = 5,
    metric: MetricLike | None = None,
    ablation: AblationLike = "corrupt",
    reference: Pairs | None = None,
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
        steps: Gradients along the path, for methods that integrate; ignored by others.
        metric: The metric at the answer position; by default that of the task that drew the pairs, else `logit_diff`.
        ablation: The replacement of a corrupted value, as in `score_edges`.
        reference: Prompts to take means over; none of them may be among `pairs`.
        seed: Random seed of noise.
        budget: Bytes of memory for a packed run; by default a share of the free memory.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is called
            with (step, done, total).
        options: Options of the method; see `METHODS[name].options`.

    Returns:
        Scores in the metric's unit, m(clean) - m(with it corrupted): positive where it helps, for metrics where less is
        better too.

    Raises:
        UnknownNameError: No such method, level, metric or ablation.
        ConfigError: The method does not score this level, has no such option or cannot take this ablation, or pairs
            without corrupted prompts.
        MetricError: The method cannot use the metric, or the metric gives the wrong shape or NaN.

    Example:
        >>> from circuitlab import load_model, load_task, score_nodes
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> score_nodes(model, pairs.discovery, "eap").values.shape  # writer
        (37,)
    """
    found = find_method(method)
    UnknownNameError.check("level", level, LEVELS, hint="Edges are scored by score_edges.")
    if level not in found.levels:
        raise ConfigError(f"method {found.name!r} does not score level {level!r}. Take one of {method_names(level)}.")
    if not has_corrupted(pairs):
        check_without_corrupted(found)
    check_ablation(found, ablation, with_reference=reference is not None)
    experiment = Experiment(model, pairs, metric, ablation, reference, seed, True, budget, callback(progress))
    return _run(found, experiment, options, steps=steps, level=level)


def _run(method: Method, experiment: Experiment, options: dict[str, Any], **shared: Any) -> Any:
    """Call a method with its own options and the shared arguments that it takes; positive scores help."""
    given = {name: value for name, value in shared.items() if name in (*method.takes, "level")}
    if "steps" in given:
        given["steps"] = SETTINGS["steps"].read(given["steps"])
    given |= method.read(options)
    try:
        scores = method.score(experiment, **given)
        if "level" not in given and METHODS.get(method.name) != method:
            scores = as_scores(experiment, method.name, scores)
    except (CircuitLabError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() in a method of the user must not end the program
        if METHODS.get(method.name) == method or is_out_of_memory(error):
            raise
        raise ConfigError(f"method {method.name!r} raised {in_one_line(error)}") from error
    if isinstance(scores, EdgeScores | NodeScores):
        known = {"ablation": scores.ablation or _ablation_of(method, experiment), "sign": scores.sign or method.sign}
        scores = replace(scores, **known)
    return scores if experiment.metric.higher_is_better or not method.in_metric else scores.negated()


def _ablation_of(method: Method, experiment: Experiment) -> str | None:
    """The ablation under which a method scores; None where it reads no corrupted value."""
    if "ablation" in method.takes:
        return experiment.replacement.kind
    return "corrupt" if method.reads_corrupt else None
