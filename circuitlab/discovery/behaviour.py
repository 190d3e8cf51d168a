"""Does the model do the task at all? Asked before an hour of compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab.data.pairs import PairSet
from circuitlab.errors import TaskNotDoneError
from circuitlab.evaluation.gap import Gap, check_data
from circuitlab.metrics import Metric, resolve
from circuitlab.metrics.formulas import prefers_answer
from circuitlab.patching.circuits.metric import Prepared
from circuitlab.summary import Summary, plural

WORST = 5


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Behaviour(Summary):
    """What the whole model does.

    Attributes:
        prefers: Share of pairs on which every answer is above every distractor, on the clean prompt.
        turns: Share of pairs on which the corrupted prompt turns that over.
        clean: Metric on the clean prompts.
        corrupt: Metric on the corrupted prompts.
        gap: What faithfulness on these pairs is a share of: m(clean) - m(empty circuit).
    """

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
        min_accuracy: Share of pairs on which the model must prefer the answer; 0 to look anyway.
        allow_weak_gap: Go on where the metric does not tell the clean run from the corrupted one or the empty circuit.

    Raises:
        TaskNotDoneError: The model prefers the answer on too few pairs, or the metric does not speak for the clean
            prompts; accuracy, gap and the five worst prompts are in the message.
        MetricError: These pairs do not tell the clean run from the corrupted one, which sweeps are measured by, or from
            the empty circuit, which faithfulness is measured by (`circuitlab.evaluation.gap`).
    """
    wanted = Metric(name="prefers_answer", function=prefers_answer, unit="share of examples", smooth=False)
    right, right_when_corrupted = prepared.gaps(wanted)[0], prepared.corrupted(wanted)
    (clean, empty), corrupt = prepared.gaps(metric), prepared.corrupted(metric)
    gained = (clean - corrupt) * (1 if metric.higher_is_better else -1)
    prefers = float(right.mean())
    if prefers >= min_accuracy and (gained.mean() > 0 or min_accuracy == 0):
        check_data(metric, clean, corrupt, allow_weak_gap=allow_weak_gap)
        gap = check_data(metric, clean, empty, prepared.empty_is, allow_weak_gap=allow_weak_gap)
        return Behaviour(prefers, float(1 - right_when_corrupted.mean()), clean, corrupt, gap)
    margins, _ = prepared.gaps(resolve("logit_diff"))
    worst = "; ".join(
        f"{pairs[int(i)].clean!r} wants {'/'.join(pairs[int(i)].answers)!r} over "
        f"{'/'.join(pairs[int(i)].distractors)!r}: "
        f"{margins[i]:+.2f} logits"
        for i in np.argsort(margins, kind="stable")[:WORST]
    )
    raise TaskNotDoneError(
        f"the model does not do the task: it prefers the answer on {prefers:.0%} of {len(pairs)} clean prompts "
        f"(needed: {min_accuracy:.0%}), {metric.name} is {clean.mean():.3g} clean and {corrupt.mean():.3g} "
        f"corrupted. The "
        f"worst: {worst}. Take a model that does it, mend the task, or lower min_accuracy (--min-accuracy) to "
        f"look anyway."
    )
