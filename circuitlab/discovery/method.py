"""Scoring methods: a function with its options, and what it supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature, unwrap
from typing import Any

import numpy as np
import torch

from circuitlab import names
from circuitlab.declarations import Setting, options_of
from circuitlab.discovery.scores import EdgeScores
from circuitlab.errors import CircuitLabError, ConfigError, UnknownNameError, WrongTypeError, in_one_line, shown
from circuitlab.graphs.prune import real_edges
from circuitlab.parts import Layout
from circuitlab.patching.experiment import Experiment
from circuitlab.references import Reference

# Arguments of `score_edges` for every method; each method uses some of them.
SHARED = ("steps", "seed", "ablation", "axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to score edges.

    Attributes:
        name: Its name for users.
        score: The function of an `Experiment`, and by keyword of its options, of `steps` and `axis`, and of `level`
            where it scores nodes. It returns `EdgeScores`, a tensor or an array `[writer, reader]`; `NodeScores` where
            it scores nodes.
        what: One line for help and docs.
        source: The paper, if there is one.
        takes: Names of `SHARED` that the method uses; `steps` and `axis` also follow from the parameters of `score`,
            seed and ablation are those of the experiment.
        options: Its options, by default those declared in the signature of `score` (`circuitlab.declarations`).
        levels: The levels that it scores: "edge", and names of `LEVELS`.
        reads_corrupt: Whether it reads the corrupted run. Scores of a method that takes no ablation and does not read
            it are the same under any ablation; circuits are then selected and evaluated under that ablation.
        in_metric: Whether scores are differences of the metric; they are negated where less is better.
        sign: What the sign of its scores means, a name of `circuitlab.names.SIGNS`: "effect" (positive: the edge
            helps), "size" (never negative, it does not tell whether the edge helps) or "none".
        gradients_at: The points at which it takes the gradient of the metric, as shares of the clean run: 1 is the
            clean run, 0 the corrupted one. Empty for a method that needs no gradient of the metric.
        own_circuit: Whether it chooses a circuit itself, which is selected by default; or a function of its options by
            name that returns whether it does with them.
        check: Called with all options by name before any work; rejects options that exclude each other.
        ablation_why: Reason for the corrupted run only, for the message, where "ablation" is not taken.
        corrupt_why: Reason for the corrupted run under every ablation, where "ablation" is taken.
    """

    name: str
    score: Callable[..., Any]
    what: str = ""
    source: Reference | None = None
    takes: tuple[str, ...] = ()
    options: tuple[Setting, ...] = ()
    levels: tuple[str, ...] = ("edge",)
    reads_corrupt: bool = True
    in_metric: bool = True
    sign: str = "effect"
    gradients_at: tuple[float, ...] = ()
    own_circuit: bool | Callable[..., bool] = False
    check: Callable[..., None] | None = None
    ablation_why: str = "it compares with the corrupted run"
    corrupt_why: str = ""

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise WrongTypeError(
                f"score of method {self.name!r} is {shown(self.score)}; it must be a function of an Experiment."
            )
        UnknownNameError.check("sign", self.sign, names.SIGNS, owner=f"method {self.name!r}")
        parameters = signature(unwrap(self.score)).parameters
        taken = (*self.takes, *(word for word in ("steps", "axis") if word in parameters))
        object.__setattr__(self, "takes", tuple(dict.fromkeys(taken)))
        object.__setattr__(self, "options", self.options or options_of(self.score))
        object.__setattr__(self, "what", self.what or names.METHODS.get(self.name, ""))

    def chooses_circuit(self, given: Mapping[str, Any] | None = None) -> bool:
        """Whether it chooses a circuit itself.

        Args:
            given: Its options, as `read` returns them; the others have their defaults.

        Returns:
            Whether it does.
        """
        if not callable(self.own_circuit):
            return self.own_circuit
        return self.own_circuit(**{option.name: option.default for option in self.options} | dict(given or {}))

    @property
    def needs_corrupted(self) -> bool:
        """Whether pairs must have corrupted prompts, whatever the ablation."""
        return self.reads_corrupt and ("ablation" not in self.takes or bool(self.corrupt_why))

    def read(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Read the options of the method.

        Returns:
            The given options, each in its own type.

        Raises:
            ConfigError: The method has no such option, or a value is of the wrong kind or out of range.
            UnknownNameError: A value is none of the allowed words.
        """
        known = {option.name: option for option in self.options}
        for name in given or {}:
            if name in SHARED:
                raise ConfigError(
                    f"{name!r} is an argument of its own (--{name} on the command line where there is one), not an "
                    f"option of method {self.name!r}."
                )
            if name not in known:
                listed = "; ".join(f"{option.name}: {option.what}" for option in self.options)
                raise ConfigError(
                    f"method {self.name!r} has no option {name!r}. "
                    f"{f'It takes {listed}.' if listed else 'It takes none: leave it out.'}"
                )
        found = {name: known[name].read(value, f"method {self.name!r}") for name, value in (given or {}).items()}
        if self.check is not None:
            try:
                self.check(**{option.name: option.default for option in self.options} | found)
            except (CircuitLabError, KeyboardInterrupt):
                raise
            except BaseException as error:  # sys.exit() in a check of the user must not end the program
                raise ConfigError(f"check of method {self.name!r} raised {in_one_line(error)}") from error
        return found


# Of (model, pairs, metric): `EdgeScores`, or scores `[writer, reader]` as a tensor or an array.
MethodFunction = Callable[..., Any]
MethodLike = str | Method | MethodFunction


def method_of(function: MethodFunction, name: str = "") -> Method:
    """Make a method of a function of model, pairs and metric.

    Args:
        function: It returns `EdgeScores`, or scores `[writer, reader]`, positive where the edge helps. Of the keywords
            `steps`, `seed`, `axis` and `ablation` (a `Replacement`) it gets those that its signature names; its own
            options are the parameters annotated with a `Setting`.
        name: Name of the method; by default that of the function.

    Returns:
        The method.

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
        return as_scores(experiment, name, function(experiment.model, experiment.pairs, experiment.metric, **given))

    return Method(
        name=name, what=(getattr(function, "__doc__", None) or "").strip().partition("\n")[0], score=score, takes=takes,
        options=options_of(function), in_metric=False, ablation_why="its function has no parameter `ablation`",
    )  # fmt: skip


def as_scores(experiment: Experiment, name: str, found: Any) -> EdgeScores:
    """Check the result of a method's function, and convert it to scores.

    Args:
        experiment: What was scored.
        name: Name of the method.
        found: The result.

    Returns:
        The scores.

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
    tested = real if scores is None else scores.tested
    if not np.isfinite(values[tested]).all():
        writer, reader = np.argwhere(tested & ~np.isfinite(values))[0].tolist()
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
