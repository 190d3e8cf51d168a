"""What a scoring method is: its function, what it can be told, and what it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from circuitlab.declarations import Setting, options_of
from circuitlab.errors import ConfigError
from circuitlab.references import Reference

# Arguments that `score_edges` has for every method; each method takes those that mean something to it.
SHARED = ("steps", "seed", "ablation", "axis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to score edges.

    Attributes:
        name: What users call it.
        what: One line for help and docs.
        source: The paper.
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
    source: Reference
    score: Callable[..., Any]
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
