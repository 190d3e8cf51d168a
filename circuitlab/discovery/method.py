"""What a scoring method is: its function, what it can be told, and what it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch

from circuitlab.declarations import Setting, options_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import ConfigError, shown
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.references import Reference

# Arguments that `score_edges` has for every method; each method takes those that mean something to it.
SHARED = ("steps", "seed", "ablation", "axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to score edges.

    Attributes:
        name: What users call it.
        what: One line for help and docs.
        source: The paper, if there is one.
        score: The function of an `Experiment`, and by keyword of its options, of `steps` and `axis` where it `takes`
            them, and of `level` where it scores nodes.
        takes: Which of `SHARED` mean something to it; seed and ablation are the experiment's.
        options: Its own options, by default those declared in the signature of `score` (`circuitlab.declarations`).
        levels: What it can score beside edges: "node", "neuron".
        reads_corrupt: Whether it looks at the corrupted run. One that takes no ablation and does not can stand beside
            any: its scores are the same, and circuits are selected and tested under it.
        in_metric: Whether scores are differences of the metric; their sign is turned where less is better.
        gradients_at: Where it takes the gradient of the metric, as shares of the clean run: 1 is the clean run, 0 the
            corrupted one. Empty for a method that needs no gradient of the metric.
        own_circuit: Whether it can bring a circuit of its own, which is taken where nothing is asked of a selection.
        check: Called with all options by name before any work; refuses those that do not go together.
        ablation_why: Why it replaces by the corrupted run only, for the message, where "ablation" is not taken.
    """

    name: str
    what: str
    score: Callable[..., Any]
    source: Reference | None = None
    takes: tuple[str, ...] = ()
    options: tuple[Setting, ...] = ()
    levels: tuple[str, ...] = ("edge",)
    reads_corrupt: bool = True
    in_metric: bool = True
    gradients_at: tuple[float, ...] = ()
    own_circuit: bool = False
    check: Callable[..., None] | None = None
    ablation_why: str = "it compares with the corrupted run"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", self.options or options_of(self.score))

    def read(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Options in their own types; only those that were given.

        Raises:
            ConfigError: The method has no such option, or a value is of the wrong kind or out of range.
            UnknownNameError: A value is none of the allowed words.
        """
        own = {option.name: option for option in self.options}
        for name in given or {}:
            if name in SHARED:
                raise ConfigError(
                    f"{name!r} is an argument of its own (--{name} on the command line where there is one), not an "
                    f"option of method {self.name!r}."
                )
            if name not in own:
                listed = "; ".join(f"{option.name}: {option.what}" for option in self.options)
                raise ConfigError(
                    f"method {self.name!r} has no option {name!r}. "
                    f"{f'It takes {listed}.' if listed else 'It takes none: leave it out.'}"
                )
        found = {name: own[name].read(value, f"method {self.name!r}") for name, value in (given or {}).items()}
        if self.check is not None:
            self.check(**{option.name: option.default for option in self.options} | found)
        return found


# Of (model, pairs, metric): `EdgeScores`, or scores `[writer, reader]` as a tensor or an array.
MethodFunction = Callable[..., Any]
MethodLike = str | Method | MethodFunction


def method_of(function: MethodFunction, name: str = "") -> Method:
    """The method that a function of model, pairs and metric is.

    Args:
        function: It returns `EdgeScores`, or scores `[writer, reader]`, positive where the edge helps. Of the keywords
            `steps`, `seed`, `axis` and `ablation` (a `Replacement`) it gets those that its signature names; its own
            options are the parameters annotated with a `Setting`.
        name: What the method is called; by default as the function.

    Raises:
        ConfigError: It does not take model, pairs and metric.
    """
    name = name or str(getattr(function, "__name__", type(function).__name__))
    try:
        parameters = signature(function).parameters
        signature(function).bind(*"123", **{word: 0 for word in SHARED if word in parameters})
    except (TypeError, ValueError):
        raise ConfigError(
            f"method {name!r} cannot be called with (model, pairs, metric). Give it these three parameters, and others "
            "with defaults."
        ) from None
    takes = tuple(word for word in SHARED if word in parameters)

    def score(experiment: Experiment, **given: Any) -> EdgeScores:
        of_experiment = {"seed": experiment.seed, "ablation": experiment.replacement}
        given |= {word: value for word, value in of_experiment.items() if word in takes}
        return _as_scores(experiment, name, function(experiment.model, experiment.pairs, experiment.metric, **given))

    return Method(
        name=name, what=(getattr(function, "__doc__", None) or "").strip().partition("\n")[0], score=score, takes=takes,
        options=options_of(function), in_metric=False, ablation_why="its function has no parameter `ablation`",
    )  # fmt: skip


def _as_scores(experiment: Experiment, name: str, found: Any) -> EdgeScores:
    """What the function of a method returned, checked, as scores.

    Raises:
        ConfigError: It is of another type, model or shape, or the score of an edge is not finite.
    """
    spec = experiment.model.spec
    layout = Layout.of(spec)
    scores = found if isinstance(found, EdgeScores) else None
    if scores is not None and scores.spec != spec:
        raise ConfigError(f"method {name!r} returned scores of model {scores.spec.name!r}, not of {spec.name!r}.")
    values = found if scores is None else scores.values
    if torch.is_tensor(values):
        values = values.detach().cpu().double().numpy()
    wanted = (len(layout.writers), len(layout.readers))
    if not isinstance(values, np.ndarray) or values.shape != wanted or values.dtype.kind not in "fiu":
        got = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else shown(values)
        raise ConfigError(
            f"method {name!r} returned {got}; it must return EdgeScores, or real scores [writer, reader] as a tensor "
            f"or array of shape {wanted} for this model."
        )
    real = real_edges(layout)
    asked = real if scores is None else scores.asked
    if not np.isfinite(values[asked]).all():
        writer, reader = np.argwhere(asked & ~np.isfinite(values))[0].tolist()
        raise ConfigError(
            f"method {name!r} scores edge {layout.edge_name(writer, reader)} with {values[writer, reader]}; scores "
            "must be finite numbers."
        )
    if scores is not None:
        return scores
    return EdgeScores(
        spec=spec, values=np.where(real, values.astype(float), 0.0), standard_error=np.full(wanted, np.nan),
        method=name, metric=experiment.metric.name, n_examples=experiment.n_examples,
    )  # fmt: skip
