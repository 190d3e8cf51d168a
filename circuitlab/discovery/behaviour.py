"""Does the model do the task at all? Checked before the sweeps and scores, which may take hours.

What is asked is what the metric asks. Where 0 separates right from wrong (`Metric.natural_zero`), a pair passes if the
metric of its clean prompt is on the better side of 0; with any other metric, if the most likely next token is one of
the answers. So a task with several right answers passes as soon as its metric does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuitlab.data.pairs import PairSet
from circuitlab.errors import TaskNotDoneError
from circuitlab.evaluation.gap import Gap, check_data
from circuitlab.metrics import Metric, resolve
from circuitlab.patching.circuits.metric import Prepared
from circuitlab.summary import Summary, plural

WORST = 5
SHOWN_WORDS, SHOWN_CHARACTERS = 3, 60
TOP_TOKEN = "the most likely token is an answer"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Behaviour(Summary):
    """What the whole model does.

    Attributes:
        rule: What a pair has to show, in words: "logit_diff is above 0" or "the most likely token is an answer".
        prefers: Share of pairs whose clean prompt shows it.
        turns: Share of pairs whose corrupted prompt does not show it.
        clean: Metric on the clean prompts.
        corrupt: Metric on the corrupted prompts.
        gap: What faithfulness on these pairs is a share of: m(clean) - m(empty circuit).
    """

    rule: str
    prefers: float
    turns: float
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"]
    gap: Gap

    def _summary(self) -> str:
        return (
            f"on {plural(len(self.clean), 'pair')}: clean {self.clean.mean():.4g}, corrupted {self.corrupt.mean():.4g}"
        )


def check_behaviour(
    prepared: Prepared, pairs: PairSet, metric: Metric, min_accuracy: float, *, allow_weak_gap: bool = False
) -> Behaviour:
    """Measure the behaviour and refuse a model that does not show it, or shows nothing that could be explained.

    Args:
        prepared: The pairs, with what excluded edges carry.
        pairs: The same pairs, for their words.
        metric: What is measured.
        min_accuracy: Share of pairs that must pass (see the module); 0 to go on in any case.
        allow_weak_gap: Go on where the metric does not tell the clean run from the corrupted one or the empty circuit.

    Raises:
        TaskNotDoneError: Too few pairs pass, or the mean metric is no better on the clean prompts than on the corrupted
            ones; the message has the rule that failed, its numbers and the five worst prompts.
        MetricError: These pairs do not tell the clean run from the corrupted one, which sweeps are measured by, or from
            the empty circuit, which faithfulness is measured by (`circuitlab.evaluation.gap`); or the metric gives the
            wrong shape, or values that are not finite.
    """
    (clean, empty), corrupt = prepared.gaps(metric), prepared.corrupted(metric)
    rule, right, right_when_corrupted = _passes(prepared, metric, clean, corrupt)
    better = 1 if metric.higher_is_better else -1
    prefers = float(right.mean())
    if prefers < min_accuracy:
        order = better * clean if metric.natural_zero else -prepared.gaps(resolve("rank"))[0]
        share, needed = different_digits(100 * prefers, 100 * min_accuracy)
        _refuse(
            f"{rule} on {int(right.sum())} of {len(pairs)} clean prompts ({share}%), and min_accuracy asks for "
            f"{needed}%",
            _worst(prepared, pairs, metric, clean, order),
        )
    if min_accuracy > 0 and (better * (clean - corrupt)).mean() <= 0:
        one, other = different_digits(float(clean.mean()), float(corrupt.mean()))
        way = "more" if better > 0 else "less"
        _refuse(
            f"{metric.name} is {one} on the clean and {other} on the corrupted prompts, and it should be {way} on the "
            f"clean ones",
            _worst(prepared, pairs, metric, clean, better * (clean - corrupt), corrupt),
            ""
            if metric.natural_zero or better < 0
            else f" If less {metric.name} is better, declare the metric so: higher_is_better=False.",
        )
    check_data(metric, clean, corrupt, allow_weak_gap=allow_weak_gap)
    gap = check_data(metric, clean, empty, prepared.empty_is, allow_weak_gap=allow_weak_gap)
    return Behaviour(rule, prefers, float(1 - right_when_corrupted.mean()), clean, corrupt, gap)


def different_digits(one: float, other: float, least: int = 3) -> tuple[str, str]:
    """Two numbers with as many significant digits as it takes to tell them from each other; at least `least`.

    Example:
        >>> different_digits(59.9999, 60.0)
        ('59.9999', '60')
    """
    for digits in range(least, 18):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1] or one == other:
            return texts
    return repr(one), repr(other)


def _passes(
    prepared: Prepared, metric: Metric, clean: Float[np.ndarray, " example"], corrupt: Float[np.ndarray, " example"]
) -> tuple[str, Bool[np.ndarray, " example"], Bool[np.ndarray, " example"]]:
    """The rule in words, and which clean and which corrupted prompts keep it."""
    if not metric.natural_zero:
        accuracy = resolve("accuracy")
        return TOP_TOKEN, prepared.gaps(accuracy)[0] == 1, prepared.corrupted(accuracy) == 1
    if metric.higher_is_better:
        return f"{metric.name} is above 0", clean > 0, corrupt > 0
    return f"{metric.name} is below 0", clean < 0, corrupt < 0


def _refuse(reason: str, worst: str, hint: str = "") -> None:
    raise TaskNotDoneError(
        f"the model does not do the task: {reason}. The worst: {worst}. Use a model that does it, change the task, or "
        f"lower min_accuracy (--min-accuracy; 0 skips this check).{hint}"
    )


def _worst(
    prepared: Prepared,
    pairs: PairSet,
    metric: Metric,
    clean: Float[np.ndarray, " example"],
    order: Float[np.ndarray, " example"],
    corrupt: Float[np.ndarray, " example"] | None = None,
) -> str:
    """The prompts that come first in this order, with the numbers of the rule that failed."""
    above = prepared.gaps(resolve("rank"))[0]
    told = []
    for i in np.argsort(order, kind="stable")[:WORST].tolist():
        pair = pairs[i]
        over = f" over {_words(pair.distractors)}" if pair.distractors and metric.needs_distractor else ""
        if corrupt is not None:
            value = f"{clean[i]:.3g} clean, {corrupt[i]:.3g} corrupted"
        elif metric.natural_zero:
            value = f"{clean[i]:+.3g} {metric.unit}".strip()
        else:
            value = f"{above[i]:.0f} tokens above it"
        told.append(f"{_end_of(pair.clean)!r} wants {_words(pair.answers)}{over}: {value}")
    return "; ".join(told)


def _words(words: Sequence[str]) -> str:
    more = f" (or {len(words) - SHOWN_WORDS} more)" if len(words) > SHOWN_WORDS else ""
    return repr("/".join(words[:SHOWN_WORDS])) + more


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= SHOWN_CHARACTERS else "..." + prompt[3 - SHOWN_CHARACTERS :]
