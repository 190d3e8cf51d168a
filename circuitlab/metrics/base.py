"""What a metric is, the table of metrics, and the check of what a metric returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.errors import CircuitLabError, MetricError, UnknownNameError
from circuitlab.metrics import formulas
from circuitlab.references import CONMY_2023, WANG_2023, Reference

MetricFunction = Callable[[Float[Tensor, "batch d_vocab"], PairBatch], Float[Tensor, " batch"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity judged at the answer position.

    Attributes:
        name: What users call it.
        function: `(logits [batch, d_vocab], batch) -> [batch]`.
        unit: Of its values.
        higher_is_better: Direction: whether a better model has more of it.
        smooth: Whether it has a useful gradient.
        needs_reference: Whether it compares with the clean run (`PairBatch.reference`).
        local: Whether it depends on the logits of the batch's answers and distractors only, so that no others are
            computed.
        source: Where it was proposed, if anywhere.
    """

    name: str
    function: MetricFunction
    unit: str
    higher_is_better: bool = True
    smooth: bool = True
    needs_reference: bool = False
    local: bool = False
    source: Reference | None = None

    def __call__(self, logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
        """One value per example.

        Raises:
            MetricError: The function raised, or returned another shape, another type, or NaN.
        """
        if self.needs_reference and batch.reference is None:
            raise MetricError(
                f"metric {self.name!r} compares with the clean run; give it batch.with_reference(logits)."
            )
        try:
            values = self.function(logits, batch)
        except CircuitLabError:
            raise
        except Exception as error:
            raise MetricError(f"metric {self.name!r} raised {type(error).__name__}: {error}") from error
        if not torch.is_tensor(values) or values.shape != (len(batch),):
            got = f"shape {tuple(values.shape)}" if torch.is_tensor(values) else type(values).__name__
            raise MetricError(
                f"metric {self.name!r} returned {got} for {len(batch)} examples; it must return one value per example, "
                f"shape ({len(batch)},). Means are taken by circuitlab."
            )
        if not values.is_floating_point():
            values = values.to(logits.dtype)
        if bool(values.isnan().any()):
            bad = int(values.isnan().nonzero()[0])
            raise MetricError(f"metric {self.name!r} returned NaN, first for example {int(batch.index[bad])}.")
        return values


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="logit_diff", function=formulas.logit_diff, unit="logits", local=True, source=WANG_2023),
        Metric(name="prob_diff", function=formulas.prob_diff, unit="probability"),
        Metric(name="log_prob", function=formulas.log_prob, unit="nats"),
        Metric(
            name="kl",
            function=formulas.kl,
            unit="nats",
            higher_is_better=False,
            needs_reference=True,
            source=CONMY_2023,
        ),
        Metric(name="accuracy", function=formulas.accuracy, unit="share of examples", smooth=False),
        Metric(name="rank", function=formulas.rank, unit="tokens above", higher_is_better=False, smooth=False),
    )
}


def names() -> tuple[str, ...]:
    """Names of the metrics that ship with the library."""
    return tuple(METRICS)


def resolve(metric: str | Metric | MetricFunction) -> Metric:
    """The metric meant by a name, a `Metric`, or a plain function.

    Raises:
        UnknownNameError: No metric has this name.
        MetricError: It is none of the three.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise UnknownNameError.of("metric", metric, METRICS)
        return METRICS[metric]
    if callable(metric):
        name = str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)
        return Metric(name=name, function=metric, unit=str(getattr(metric, "unit", "")))
    raise MetricError(f"a metric is a name, a Metric or a function of (logits, batch); got {type(metric).__name__}.")
