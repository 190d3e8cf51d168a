"""Can this model do this task? Asked before anybody starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlab.data.registry import load_task
from circuitlab.data.task import Task
from circuitlab.discovery.behaviour import passes
from circuitlab.errors import PairLengthError, SpanError, TokenError, TooFewPromptsError
from circuitlab.metrics import MetricLike, resolve
from circuitlab.metrics.of_task import metric_of
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gap import Gap
from circuitlab.progress import Progress, callback
from circuitlab.resources import Resources
from circuitlab.result import Result


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaskCheck(Result):
    """How well a model does a task, on its discovery pairs.

    Attributes:
        task: The task's name with its options.
        model: The model's id.
        metric: Name of the metric.
        rule: What a pair has to show, such as "logit_diff is above 0".
        n: Pairs; 0 if none could be drawn.
        accuracy: Share of pairs whose clean prompt keeps the rule; None without pairs.
        top_token: Share of pairs on which an answer is the most likely token; None without pairs.
        clean: Mean metric on the clean prompts; None without pairs.
        corrupt: Mean metric on the corrupted prompts; None without pairs.
        gap: Mean difference of the two with its 99 % interval; None without pairs.
        dropped: Reason -> how many distinct examples the tokenizer could not serve.
        problem: Why there are no pairs; empty if there are.
    """

    task: str
    model: str
    metric: str
    rule: str = ""
    n: int = 0
    accuracy: float | None = None
    top_token: float | None = None
    clean: float | None = None
    corrupt: float | None = None
    gap: Gap | None = None
    dropped: Mapping[str, int]
    problem: str = ""

    @property
    def n_dropped(self) -> int:
        """Distinct examples that the tokenizer could not serve."""
        return sum(self.dropped.values())

    @property
    def gap_interval(self) -> tuple[float | None, float | None, float | None]:
        """The 99 % Student interval of the mean gap: low, mean, high; None without pairs."""
        return (None, None, None) if self.gap is None else (self.gap.low, self.gap.mean, self.gap.high)

    def to_record(self) -> dict[str, Any]:
        """The numbers as JSON holds them.

        Returns:
            One entry for each attribute; of the gap its mean, `gap_low` and `gap_high`.
        """
        gap = dict(zip(("gap_low", "gap", "gap_high"), self.gap_interval, strict=True))
        names = ("task", "model", "metric", "rule", "n", "accuracy", "top_token", "clean", "corrupt")
        found = {name: getattr(self, name) for name in names}
        return found | gap | {"dropped": dict(self.dropped), "problem": self.problem}

    def _summary(self) -> str:
        result = self.problem or f"{self.accuracy:.0%} right, gap {self.gap.mean if self.gap else 0:.3g}"
        return f"of {self.task} on {self.model}: {result}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return self.to_record().items()


@model_function
def check_task(
    task: str | Path | Task,
    model: Model,
    *,
    n: int = 100,
    seed: int = 0,
    metric: MetricLike | None = None,
    progress: Progress | bool | None = None,
) -> TaskCheck:
    """Measure whether a model does a task; nothing is refused.

    Args:
        task: Whatever `load_task` takes.
        model: A loaded model.
        n: Pairs per split; the discovery pairs are measured.
        seed: Same seed, same pairs.
        metric: What is measured; the task's own by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is
            called with (step, done, total).

    Returns:
        Accuracy, means, gap and dropped examples. If the tokenizer cannot serve the task, `problem` says why, and the
        rest is None.

    Raises:
        UnknownNameError: No such task or metric.
        MetricError: The metric fails on the pairs.

    Example:
        >>> from circuitlab import check_task, load_model
        >>> check_task("name-throw", load_model("bundled"), n=8).accuracy
        1.0
    """
    asked = load_task(task)
    judged_by = metric_of(asked, metric)
    about: dict[str, Any] = {"task": asked.label, "model": model.id, "metric": judged_by.name}
    try:
        pairs = asked.pairs(model, n=n, seed=seed, progress=progress)
    except (TooFewPromptsError, TokenError, PairLengthError, SpanError) as error:
        return TaskCheck(**about, dropped={}, problem=str(error))
    resources = Resources(progress=callback(progress))
    experiment = Experiment(model, pairs.discovery, judged_by, allow_weak_gap=True, progress=resources.progress)
    rule, right, _ = passes(experiment)
    return TaskCheck(
        **about,
        rule=rule,
        n=len(pairs.discovery),
        accuracy=float(right.mean()),
        top_token=float((experiment.recordings.ends(resolve("accuracy"))[0][0] == 1).mean()),
        clean=float(experiment.clean.mean()),
        corrupt=float(experiment.corrupt.mean()),
        gap=Gap.of(experiment.clean, experiment.corrupt),
        dropped=pairs.dropped,
    )
