"""Metrics: one value per example, from next-token logits at the answer position. No models here."""

from circuitlab.metrics.base import Metric, names, resolve

__all__ = ["Metric", "names", "resolve"]
