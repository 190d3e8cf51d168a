"""Metrics: one value per example, from next-token logits at the answer position. No models here."""

from circuitlab.metrics.base import Metric, MetricLike, metric_for, names, resolve
from circuitlab.metrics.of_task import metric_of

__all__ = ["Metric", "MetricLike", "metric_for", "metric_of", "names", "resolve"]
