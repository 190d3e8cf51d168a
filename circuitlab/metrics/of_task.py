"""The metric that a task is measured by, checked before a model is loaded."""

from __future__ import annotations

from random import Random

from circuitlab.data.sampling import draw, fixed_examples
from circuitlab.data.task import Task
from circuitlab.errors import MetricError
from circuitlab.metrics.base import Metric, MetricLike, metric_for, no_distractor


def metric_of(task: Task, metric: MetricLike | None = None) -> Metric:
    """The given metric, or the task's default if it is None.

    Args:
        task: The task.
        metric: A name, a `Metric` or a function. A metric of the task's own may be asked for by its name, as a manifest
            does.

    Returns:
        The metric.

    Raises:
        UnknownNameError: No metric has this name.
        MetricError: It is no metric, or it needs distractors and the task has none.
        TaskFileError: An example could not be drawn.
    """
    found = metric_for(metric, task)
    if found.needs_distractor:
        for example in (*fixed_examples(task), draw(task, Random(0))):
            if not (example.distractors or example.distractor_ids):
                raise MetricError(no_distractor(found.name, f"task {task.name!r} has none ({example.clean[:60]!r})"))
    return found
