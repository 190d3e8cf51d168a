"""A task: a named, versioned way to draw clean and corrupted prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from circuitlab.data.example import Example
from circuitlab.data.limits import check_pairs
from circuitlab.data.sampling import sample_pairs
from circuitlab.errors import TaskError, UnknownNameError
from circuitlab.references import Reference
from circuitlab.summary import Summary, short

if TYPE_CHECKING:
    from circuitlab.data.pairs import PairSplits
    from circuitlab.models.protocol import Model


# Where options are given by name, they stand beside these: the settings of `discover` and of the command line, the
# generator that `draw` gets, the task itself.
RESERVED = frozenset(
    (
        "ablation", "allow_weak_gap", "bos", "center_weights", "device", "dtype", "fold_ln", "force", "greedy", "json",
        "method", "method_option", "method_options", "metric", "min_accuracy", "model", "n", "n_edges", "option", "out",
        "progress", "quiet", "rng", "seed", "selection", "self", "signed", "stability", "stability_seeds", "steps",
        "target", "task", "threshold",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Task(Summary):
    """What is asked of a model, as a citable module defines it.

    Attributes:
        name: Lower-case name with hyphens, unique among tasks.
        version: Version of the prompts: any change of templates or words raises it.
        summary: One line: which behaviour.
        draw: `draw(rng, **options) -> Example`; all randomness comes from `rng`.
        options: Option name -> allowed values, the default first. They are passed to `draw` as keyword arguments, so
            none may be called as a setting of `discover` is (`RESERVED`).
        chosen: The values chosen, by option name; defaults where absent.
        metric: Name of the default metric, or a callable on `(logits [batch, d_vocab], batch)`.
        sources: Where the behaviour comes from.
        fixed: Examples that always come first, or a function of the options that returns them.
        origin: The file it was loaded from; empty for bundled tasks and tasks made in a session.

    Raises:
        TaskError: No name, no version, an option that is named like a setting of `discover`, or a `draw` that does
            not take the options.
        UnknownNameError: A chosen option or value does not exist.
    """

    name: str
    version: str
    summary: str
    draw: Callable[..., Example]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    metric: str | Callable[..., Any] = "logit_diff"
    sources: tuple[Reference, ...] = ()
    fixed: tuple[Example, ...] | Callable[..., tuple[Example, ...]] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.version:
            raise TaskError(f"a task needs a name and a version; got name={self.name!r}, version={self.version!r}.")
        if taken := sorted(RESERVED & set(self.options)):
            raise TaskError(
                f"task {self.name!r} has options {taken}, which are names of settings: discover(..., {taken[0]}=...) "
                "would not reach the task. Call them otherwise."
            )
        parameters = inspect.signature(self.draw).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if missing := [name for name in self.options if name not in parameters and not open_ended]:
            raise TaskError(f"task {self.name!r}: draw() has no parameter for the options {missing}.")
        for name, value in self.chosen.items():
            if name not in self.options:
                raise UnknownNameError.of("option", name, self.options or ["(none)"], owner=f"task {self.name!r}")
            if value not in self.options[name]:
                raise UnknownNameError.of(name, value, self.options[name], owner=f"task {self.name!r}")

    @property
    def settings(self) -> dict[str, str]:
        """Every option with its value in force."""
        return {name: self.chosen.get(name, values[0]) for name, values in self.options.items()}

    @property
    def label(self) -> str:
        """Name for files and headings: the name, and every option that is not the default."""
        changed = [value for name, value in self.settings.items() if value != self.options[name][0]]
        return "-".join([self.name, *changed])

    def with_options(self, **chosen: str) -> Task:
        """The same task with other option values.

        Raises:
            UnknownNameError: An option or value does not exist.
        """
        return replace(self, chosen={**self.chosen, **chosen})

    def example(self, rng: Random) -> Example:
        """Draw one example with the options in force."""
        return self.draw(rng, **self.settings)

    def fixed_examples(self) -> tuple[Example, ...]:
        """The examples that always come first."""
        return self.fixed(**self.settings) if callable(self.fixed) else self.fixed

    def pairs(self, model: Model, n: int = 100, seed: int = 0, *, reference: bool = False) -> PairSplits:
        """Draw `n` discovery and `n` held-out pairs for a model's tokenizer.

        No text, clean or corrupted, stands in both splits. Words that the tokenizer cannot serve are dropped and
        counted.

        Args:
            model: A loaded model; its tokenizer decides what can be served.
            n: Pairs per split.
            seed: Same seed, same pairs.
            reference: Draw `n` reference pairs beside, whose texts are in neither split; the splits are the same
                with them and without.

        Raises:
            ConfigError: `n` is not a positive number.
            TooFewPromptsError: Fewer distinct pairs than asked for; the message counts what was dropped and why.
            TokenError: A prompt is longer than the model's context; the message has the prompt and both lengths.
        """
        drawn = sample_pairs(self, model.text, n=n, seed=seed, reference=reference)
        for part in (drawn.discovery, drawn.held_out, *([drawn.reference] if drawn.reference else [])):
            check_pairs(part, model.spec)
        return drawn

    def _summary(self) -> str:
        return f"{self.label} {self.version}: {short(self.summary, 70)[1:-1]}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        for name, value in self.settings.items():
            others = [one for one in self.options[name] if one != value]
            yield f"option {name}", f"{value} (others: {', '.join(others)})" if others else value
        yield "metric", self.metric
        if self.sources:
            yield "sources", ", ".join(source.key for source in self.sources)
        if self.origin:
            yield "file", self.origin
