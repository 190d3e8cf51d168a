"""The check that the model performs the task, before sweeps and scores, which may take hours.

The criterion follows from the metric. Where 0 separates right from wrong (`Metric.natural_zero`), a pair passes if the
metric of its clean prompt is on the better side of 0; with any other metric, if the most likely next token is one of
the answers. So a task with several right answers passes as soon as its metric does. `check_task` measures the same for
any model, before a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.data.framing import PromptFrame
from circuitlab.data.pairs import PairSet
from circuitlab.data.registry import load_task
from circuitlab.data.sampling import draw
from circuitlab.data.task import Task
from circuitlab.errors import (
    ModelError,
    PairLengthError,
    SpanError,
    TableError,
    TaskNotDoneError,
    TokenError,
    TooFewPromptsError,
)
from circuitlab.metrics import Metric, MetricLike, resolve
from circuitlab.metrics.base import WHOLE
from circuitlab.metrics.of_task import metric_of
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.gap import Gap
from circuitlab.progress import Progress, callback
from circuitlab.result import Result
from circuitlab.settings import SETTINGS
from circuitlab.summary import Summary, plural

WORST = 5
SHOWN_WORDS, SHOWN_CHARACTERS = 3, 60
TOP_TOKEN = "the most likely token is an answer"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Behaviour(Summary):
    """The behaviour of the whole model.

    Attributes:
        rule: The criterion of a pair, in words: "logit_diff is above 0" or "the most likely token is an answer".
        prefers: Share of pairs whose clean prompt shows it.
        turns: Share of pairs whose corrupted prompt does not show it; None for pairs without corrupted prompts.
        clean: Metric on the clean prompts.
        corrupt: Metric on the corrupted prompts, or None.
        gap: What faithfulness on these pairs is a share of: m(clean) - m(empty circuit).
    """

    rule: str
    prefers: float
    turns: float | None
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"] | None
    gap: Gap

    def _summary(self) -> str:
        corrupted = "" if self.corrupt is None else f", corrupted {self.corrupt.mean():.4g}"
        return f"on {plural(len(self.clean), 'pair')}: clean {self.clean.mean():.4g}{corrupted}"


def check_behaviour(experiment: Experiment, min_accuracy: float) -> Behaviour:
    """Measure the behaviour, and reject a model that does not show it or pairs without a gap.

    Args:
        experiment: Pairs of texts, the metric and the replacement.
        min_accuracy: Share of pairs that must pass (see the module); 0 for no check.

    Returns:
        The measured behaviour.

    Raises:
        TaskNotDoneError: Too few pairs pass, or the mean metric is no better on the clean prompts than on the corrupted
            ones (without corrupted prompts, than in the empty circuit); the message has the rule that failed, its
            numbers and the five worst prompts.
        MetricError: The gap of clean and corrupted run, the unit of sweeps, or that of clean run and empty circuit,
            the unit of faithfulness, is not significant (`circuitlab.patching.gap`); or the metric gives the wrong
            shape, or values that are not finite.
    """
    metric, clean, other = experiment.metric, experiment.clean, experiment.unit_end
    rule, right, right_when_corrupted = passes(experiment)
    better = 1 if metric.higher_is_better else -1
    prefers = float(right.mean())
    if prefers < min_accuracy:
        order = better * clean if metric.natural_zero else -_rank(experiment)
        share, needed = different_digits(100 * prefers, 100 * min_accuracy)
        _refuse(
            f"{rule} on {int(right.sum())} of {experiment.n_examples} clean prompts ({share}%), and min_accuracy asks "
            f"for {needed}%",
            _worst(experiment, order),
        )
    if min_accuracy > 0 and (better * (clean - other)).mean() <= 0:
        one, second = different_digits(float(clean.mean()), float(other.mean()))
        way = "more" if better > 0 else "less"
        where = f"in the empty circuit (ablation {experiment.replacement.kind!r})"
        _refuse(
            f"{metric.name} is {one} on the clean and {second} "
            f"{'on the corrupted prompts' if experiment.corrupt is not None else where}, and it should be {way} on the "
            f"clean ones",
            _worst(experiment, better * (clean - other), of_both=True),
            ""
            if metric.natural_zero or better < 0
            else f" If less {metric.name} is better, declare the metric so: higher_is_better=False.",
        )
    experiment.prompt_gap  # noqa: B018 - rejects pairs that sweeps cannot be measured on
    turns = None if right_when_corrupted is None else float(1 - right_when_corrupted.mean())
    return Behaviour(rule, prefers, turns, clean, experiment.corrupt, experiment.gap)


def different_digits(one: float, other: float, least: int = 3) -> tuple[str, str]:
    """Write two numbers with enough significant digits to distinguish them, at least `least`.

    Returns:
        Both numbers as text.

    Example:
        >>> different_digits(59.9999, 60.0)
        ('59.9999', '60')
    """
    for digits in range(least, 18):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1] or one == other:
            return texts
    return repr(one), repr(other)


def passes(experiment: Experiment) -> tuple[str, Bool[np.ndarray, " example"], Bool[np.ndarray, " example"] | None]:
    """Which prompts a model gets right, by the rule of the metric.

    Args:
        experiment: Pairs of texts and what is measured.

    Returns:
        The rule in words, which clean prompts keep it, and which corrupted prompts do; None without these.
    """
    metric, clean, corrupt = experiment.metric, experiment.clean, experiment.corrupt
    if not metric.natural_zero:
        right, right_when_corrupted = experiment.recordings.ends(resolve("accuracy"))[0]
        return TOP_TOKEN, right == 1, None if right_when_corrupted is None else right_when_corrupted == 1
    better, side = (1, "above") if metric.higher_is_better else (-1, "below")
    return f"{metric.name} is {side} 0", better * clean > 0, None if corrupt is None else better * corrupt > 0


def _refuse(reason: str, worst: str, hint: str = "") -> None:
    raise TaskNotDoneError(
        f"the model does not do the task: {reason}. The worst: {worst}. Use a model that does it, change the task, or "
        f"lower min_accuracy (--min-accuracy; 0 skips this check).{hint}"
    )


def _rank(experiment: Experiment) -> Float[np.ndarray, " example"]:
    return experiment.recordings.ends(resolve("rank"))[0][0]


def _worst(experiment: Experiment, order: Float[np.ndarray, " example"], *, of_both: bool = False) -> str:
    """The prompts that come first in this order, with the numbers of the rule that failed."""
    metric, clean, above = experiment.metric, experiment.clean, _rank(experiment)
    pairs = experiment.pairs
    assert isinstance(pairs, PairSet), "a task draws pairs of texts"
    texts = []
    for i in np.argsort(order, kind="stable")[:WORST].tolist():
        pair = pairs[i]
        over = f" over {_words(pair.distractors)}" if pair.distractors and metric.needs_distractor else ""
        if of_both:
            word = "empty circuit" if experiment.corrupt is None else "corrupted"
            value = f"{clean[i]:.3g} clean, {experiment.unit_end[i]:.3g} {word}"
        elif metric.natural_zero:
            value = f"{clean[i]:+.3g} {metric.unit}".strip()
        else:
            value = f"{above[i]:.0f} tokens above it"
        texts.append(f"{_end_of(pair.clean)!r} wants {_words(pair.answers)}{over}: {value}")
    return "; ".join(texts)


def _words(words: Sequence[str]) -> str:
    more = f" (or {len(words) - SHOWN_WORDS} more)" if len(words) > SHOWN_WORDS else ""
    return repr("/".join(words[:SHOWN_WORDS])) + more


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= SHOWN_CHARACTERS else "..." + prompt[3 - SHOWN_CHARACTERS :]


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
        corrupt: Mean metric on the corrupted prompts; None without pairs or corrupted prompts.
        gap: Mean difference of the two with its 99 % interval; None without pairs or corrupted prompts.
        dropped: Reason -> how many distinct examples the tokenizer could not serve.
        problem: Why there are no pairs; empty if there are.
        note: Why the metric is not the task's; empty if it is, or if it was given.
        frame: The text around every prompt: chat template and solved examples; None if there is none.
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
    note: str = ""
    frame: PromptFrame | None = None

    @property
    def n_dropped(self) -> int:
        """Distinct examples that the tokenizer could not serve."""
        return sum(self.dropped.values())

    @property
    def gap_interval(self) -> tuple[float | None, float | None, float | None]:
        """The 99 % Student interval of the mean gap: low, mean, high; None where there is no gap."""
        return (None, None, None) if self.gap is None else (self.gap.low, self.gap.mean, self.gap.high)

    def to_record(self) -> dict[str, Any]:
        """The numbers as JSON holds them.

        Returns:
            One entry for each attribute; of the gap its mean, `gap_low` and `gap_high`.
        """
        gap = dict(zip(("gap_low", "gap", "gap_high"), self.gap_interval, strict=True))
        names = ("task", "model", "metric", "rule", "n", "accuracy", "top_token", "clean", "corrupt")
        found = {name: getattr(self, name) for name in names}
        around = {} if self.frame is None else {"around": asdict(self.frame)}
        return found | gap | {"dropped": dict(self.dropped), "problem": self.problem, "note": self.note} | around

    def _summary(self) -> str:
        gap = f"gap {self.gap.mean:.3g}" if self.gap else "no corrupted prompts"
        result = self.problem or f"{self.accuracy:.0%} right, {gap}"
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
    chat: bool | None = SETTINGS["chat"].default,
    shots: int | None = SETTINGS["shots"].default,
    reply_to: str | None = SETTINGS["reply_to"].default,
    progress: Progress | bool | None = None,
) -> TaskCheck:
    """Measure whether a model does a task; nothing is refused.

    Args:
        task: Whatever `load_task` takes.
        model: A loaded model.
        n: Pairs per split; the discovery pairs are measured.
        seed: Same seed, same pairs.
        metric: What is measured; the task's own by default. If that judges one token and the tokenizer writes the
            answers as several, `answer_log_prob_diff` is measured instead, and `note` says so.
        chat: Whether a prompt is the user's message of a chat, in the model's chat template; as the task says by
            default.
        shots: Number of solved examples before every prompt; as the task says by default.
        reply_to: In a chat, the message to which every prompt begins the reply; as the task says by default.
        progress: None draws a bar in a terminal or a notebook, True always, False never; or a function that is
            called with (step, done, total).

    Returns:
        Accuracy, means, gap and dropped examples. If the tokenizer cannot serve the task, or has no chat template for
        `chat`, `problem` says why, and the rest is None.

    Raises:
        UnknownNameError: No such task or metric.
        TableError: The model cannot be given a row of a table.
        MetricError: The metric fails on the pairs.

    Example:
        >>> from circuitlab import check_task, load_model
        >>> check_task("name-throw", load_model("bundled"), n=8).accuracy
        1.0
    """
    wanted = load_task(task).with_prompting(chat=chat, shots=shots, reply_to=reply_to)
    how: dict[str, Any] = {"n": n, "seed": seed, "progress": progress}
    judged_by = metric_of(wanted, metric)
    other = metric is None and not judged_by.whole_answer and _has_distractors(wanted)
    try:
        found = _check(wanted, model, judged_by, **how)
        if not (found.problem and other):
            return found
        whole = _check(wanted, model, resolve(WHOLE), **how)
        if whole.problem:
            return found
    except TableError:  # rows of a table are refused one by one; a row that is wrong in itself is refused again
        if not other:
            raise
        whole = _check(wanted, model, resolve(WHOLE), **how)
    note = (
        f"the answers have several tokens, and {judged_by.name} judges one: measured by {WHOLE}. Give metric={WHOLE!r} "
        f"(--metric {WHOLE}) to whatever else runs this task on this model."
    )
    return replace(whole, note=note)


def _has_distractors(task: Task) -> bool:
    return task.table.has_distractors if task.table else bool(draw(task, Random(0)).distractors)


def _check(task: Task, model: Model, judged_by: Metric, **how: Any) -> TaskCheck:
    """The check by one metric; `how` are arguments of `Task.pairs`."""
    about: dict[str, Any] = {"task": task.label, "model": model.id, "metric": judged_by.name}
    try:
        pairs = task.pairs(model, **how, whole_answers=judged_by.whole_answer)
    except (TooFewPromptsError, TokenError, PairLengthError, SpanError, ModelError) as error:
        return TaskCheck(**about, dropped={}, problem=str(error))
    experiment = Experiment(model, pairs.discovery, judged_by, allow_weak_gap=True, progress=callback(how["progress"]))
    rule, right, _ = passes(experiment)
    return TaskCheck(
        **about,
        rule=rule,
        n=len(pairs.discovery),
        accuracy=float(right.mean()),
        top_token=float((experiment.recordings.ends(resolve("accuracy"))[0][0] == 1).mean()),
        clean=float(experiment.clean.mean()),
        corrupt=None if experiment.corrupt is None else float(experiment.corrupt.mean()),
        gap=None if experiment.corrupt is None else Gap.of(experiment.clean, experiment.corrupt),
        dropped=pairs.dropped,
        frame=pairs.frame,
    )
