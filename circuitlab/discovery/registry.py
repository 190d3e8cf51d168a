"""The built-in scoring methods, and the method of a name or an object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

from circuitlab import plugins
from circuitlab.data.batch import no_corrupted
from circuitlab.data.batching import has_corrupted
from circuitlab.discovery.acdc import check_acdc, score_acdc, searches_once
from circuitlab.discovery.clean_corrupted import score_clean_corrupted
from circuitlab.discovery.eap import score_eap
from circuitlab.discovery.eap_ig import score_eap_ig
from circuitlab.discovery.eap_ig_activations import score_eap_ig_activations
from circuitlab.discovery.edge_pruning import score_edge_pruning
from circuitlab.discovery.exact import score_exact
from circuitlab.discovery.ifr import score_ifr
from circuitlab.discovery.method import Method, MethodLike, method_of
from circuitlab.discovery.node_scores import LEVELS
from circuitlab.discovery.node_sweep import score_node_sweep
from circuitlab.discovery.random_scores import score_random
from circuitlab.discovery.relp import score_relp
from circuitlab.discovery.ugs import score_ugs
from circuitlab.errors import ConfigError, WrongTypeError, shown
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.replacement import CORRUPT_NEEDS, AblationLike, as_replacement
from circuitlab.references import METHOD_SOURCES

CLEAN_RUN, BOTH_RUNS, PATH = (1.0,), (1.0, 0.0), tuple(step / 8 for step in range(9))
ALL_LEVELS, WRITERS = ("edge", *LEVELS), ("edge", "node", "neuron")
ONE_PATH = "its path leads from the corrupted prompt's embedding to the clean one's"


def _built_in(name: str, score: Callable[..., Any], **about: Any) -> Method:
    return Method(name=name, score=score, source=METHOD_SOURCES[name][0], **about)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _built_in("eap-ig", score_eap_ig, gradients_at=PATH, levels=ALL_LEVELS, ablation_why=ONE_PATH),
        _built_in("eap", score_eap, gradients_at=CLEAN_RUN, levels=ALL_LEVELS, takes=("ablation",)),
        _built_in(
            "eap-ig-activations", score_eap_ig_activations, gradients_at=PATH, levels=WRITERS, takes=("ablation",)
        ),
        _built_in(
            "clean-corrupted", score_clean_corrupted, gradients_at=BOTH_RUNS, levels=ALL_LEVELS, takes=("ablation",),
            corrupt_why="it takes a gradient in the corrupted run",
        ),
        _built_in("exact", score_exact, levels=ALL_LEVELS, takes=("ablation",)),
        _built_in("sweep", score_node_sweep, takes=("ablation",)),
        _built_in("relp", score_relp, gradients_at=CLEAN_RUN, levels=WRITERS, takes=("ablation",)),
        _built_in(
            "ifr", score_ifr, reads_corrupt=False, in_metric=False, sign="size",
            ablation_why="it reads the clean run alone",
        ),
        _built_in(
            "random", score_random, reads_corrupt=False, in_metric=False, sign="none", takes=("seed",),
            ablation_why="it reads no run at all",
        ),
        _built_in(
            "acdc", score_acdc, in_metric=False, own_circuit=searches_once, takes=("ablation",), check=check_acdc
        ),
        _built_in(
            "edge-pruning", score_edge_pruning, in_metric=False, sign="size", own_circuit=True,
            takes=("seed", "ablation"),
        ),
        _built_in("ugs", score_ugs, in_metric=False, sign="size", takes=("seed", "ablation")),
    )
}  # fmt: skip


def find_method(method: MethodLike) -> Method:
    """The method of a name or an object.

    Args:
        method: A name of `METHODS` or of the entry points `circuitlab.methods`, a `Method`, or a function of model,
            pairs and metric (`method_of`).

    Returns:
        The method.

    Raises:
        UnknownNameError: No method has this name.
        ConfigError: The function does not take these arguments, or the object has the name of a built-in method; two
            packages list the name.
        WrongTypeError: Another package lists something that is no method and no function.
    """
    if not isinstance(method, str):
        found = method if isinstance(method, Method) else method_of(method)
        if METHODS.get(found.name, found) != found:
            raise ConfigError(f"method {found.name!r} is built in. Give the object another name.")
        return _called_with_an_experiment(found)
    if method in METHODS:
        return METHODS[method]
    found = plugins.find("methods", method, METHODS)
    if not (isinstance(found, Method) or callable(found)):
        raise WrongTypeError(
            f"method {method!r} of the entry points is {shown(found)}; it must be a Method or a function."
        )
    named = replace(found, name=method) if isinstance(found, Method) else method_of(found, method)
    return _called_with_an_experiment(named)


def _called_with_an_experiment(method: Method) -> Method:
    """The same method, its function checked.

    Raises:
        ConfigError: The function cannot be called as `score_edges` and `score_nodes` call it.
    """
    words = [word for word in ("steps", "axis") if word in method.takes]
    words += ["level"] if set(method.levels) & set(LEVELS) else []
    try:
        signature(method.score).bind(None, **dict.fromkeys(words))
    except (TypeError, ValueError):
        keywords = f", and by keyword {', '.join(words)}" if words else ""
        raise ConfigError(
            f"score of method {method.name!r} cannot be called with (experiment){keywords}. Give it the parameter "
            f"experiment{keywords}, and others with defaults; or give a function of (model, pairs, metric) without "
            "Method: method=function."
        ) from None
    return method


def check_serves(method: Method, ablation: AblationLike) -> None:
    """Reject a method whose scores are about the corrupted run, where circuits are evaluated under another ablation.

    Raises:
        ConfigError: It is such a method and another ablation.
    """
    if method.reads_corrupt:
        check_ablation(method, ablation)


def scored_under(method: Method, experiment: Experiment) -> Experiment:
    """The experiment to score edges in, given the one in which circuits are evaluated.

    Returns:
        The same experiment; with the corrupted run as replacement for a method that takes no ablation and reads it.

    Raises:
        ConfigError: The method does not serve the ablation (`check_serves`), or needs corrupted prompts and the pairs
            have none.
    """
    if has_corrupted(experiment.pairs):
        check_serves(method, experiment.ablation)
    else:
        check_without_corrupted(method)
    if "ablation" in method.takes or not method.reads_corrupt:
        return experiment
    return experiment.under_corrupt()


def check_without_corrupted(method: Method) -> None:
    """Reject a method that needs corrupted prompts, for pairs without.

    Raises:
        ConfigError: It needs them under every ablation.
    """
    if method.needs_corrupted:
        able = ", ".join(name for name, one in METHODS.items() if not one.needs_corrupted)
        why = method.corrupt_why or method.ablation_why
        raise no_corrupted(f"method {method.name!r} needs corrupted prompts ({why})", f"Take one of {able}")


def check_clean_only(method: Method, ablation: AblationLike) -> None:
    """Reject what needs corrupted prompts, for a task without, before a model is loaded.

    Raises:
        ConfigError: The ablation is "corrupt", or the method needs them.
    """
    if as_replacement(ablation).kind == "corrupt":
        need, instead = CORRUPT_NEEDS
        raise no_corrupted(need, instead + (" and method 'eap' (--method eap)" if method.needs_corrupted else ""))
    check_without_corrupted(method)


def check_ablation(method: Method, ablation: AblationLike, *, with_reference: bool = False) -> None:
    """Reject an ablation, or reference prompts, that a method would ignore.

    Args:
        method: The method.
        ablation: A name, a `Replacement` or a function.
        with_reference: Whether reference prompts are given.

    Raises:
        ConfigError: The method compares with the corrupted run only.
    """
    wanted = as_replacement(ablation)
    if "ablation" in method.takes or (wanted.kind == "corrupt" and not with_reference):
        return
    given = f"ablation {wanted.kind!r}" if wanted.kind != "corrupt" else "reference set"
    raise ConfigError(
        f"method {method.name!r} takes no {given}: {method.ablation_why}. Leave it out"
        f"{method_names('ablation', ', or take one of ')}."
    )


def method_names(argument: str, before: str = "") -> str:
    """The names of the methods that take an argument or score a level.

    Args:
        argument: One of `SHARED`, or a level.
        before: Text in front of the list, if it is not empty.

    Returns:
        The list; empty without such a method.
    """
    found = [name for name, method in METHODS.items() if argument in (*method.takes, *method.levels)]
    return f"{before}{', '.join(found)}" if found else ""
