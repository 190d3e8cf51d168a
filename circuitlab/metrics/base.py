"""What a metric is, the table of metrics, and the check of what a metric returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab import plugins
from circuitlab.arguments import checked_fields
from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.errors import CircuitLabError, MetricError, in_one_line, shown
from circuitlab.metrics import formulas
from circuitlab.references import CONMY_2023, HANNA_2023, WANG_2023, Reference

MetricFunction = Callable[[Float[Tensor, "batch d_vocab"], PairBatch], Float[Tensor, " batch"]]
DEFAULT = "logit_diff"
WHOLE = "answer_log_prob_diff"


@checked_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity judged at the answer position.

    Attributes:
        name: What users call it.
        function: `(logits [batch, d_vocab], batch) -> [batch]`.
        unit: Of its values.
        what: One line: what it is, and what it makes of several answers and distractors.
        higher_is_better: Direction: whether a better model has more of it.
        smooth: Whether it has a useful gradient.
        natural_zero: Whether 0 separates right from wrong: on the better side of 0 the model prefers an answer.
            `discover` checks a behaviour by this sign; by the most likely token where there is no such zero.
        needs_distractor: Whether it compares the answers with distractors.
        needs_reference: Whether it compares with the clean run (`PairBatch.reference`).
        local: Whether it depends on the logits of the batch's answers and distractors only, so that no others are
            computed.
        whole_answer: Whether it is about whole answers, so that it can judge answers of several tokens: its values are
            summed over the positions that are judged (`PairBatch.n_words`).
        source: Where it was proposed, if anywhere.

    Raises:
        WrongTypeError: A field is of another type than stated.
        MetricError: The name is empty, or a text is not one printable line.

    Example:
        >>> def first_logit(logits, batch):
        ...     return logits[:, 0]
        >>> Metric(name="first_logit", function=first_logit).needs_distractor
        False
    """

    name: str
    function: MetricFunction
    unit: str = ""
    what: str = ""
    higher_is_better: bool = True
    smooth: bool = True
    natural_zero: bool = False
    needs_distractor: bool = False
    needs_reference: bool = False
    local: bool = False
    whole_answer: bool = False
    source: Reference | None = None

    def __post_init__(self) -> None:
        for field in ("name", "unit", "what"):
            text = getattr(self, field)
            if not text.isprintable() or (field == "name" and not text.strip()):
                raise MetricError(f"{field} of a metric is {shown(text)}; it must be one line of printable text.")

    def __call__(self, logits: Float[Tensor, "batch d_vocab"], batch: PairBatch) -> Float[Tensor, " batch"]:
        """One value per example.

        Raises:
            MetricError: The batch lacks what the metric needs; the function raised, changed the logits, or returned
                another shape, another type, or values that are not finite.
        """
        if self.needs_reference and batch.reference is None:
            raise MetricError(
                f"metric {self.name!r} compares with the clean run; give it batch.with_reference(logits)."
            )
        if self.needs_distractor and not batch.has_distractors:
            raise MetricError(no_distractor(self.name, "some pairs have none"))
        before = None if logits.is_inference() else logits._version
        try:
            values = self.function(logits, batch)
        except (CircuitLabError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() in a metric must not end the program
            raise MetricError(f"metric {self.name!r} raised {in_one_line(error)}") from error
        if before is not None and logits._version != before:
            raise MetricError(f"metric {self.name!r} changes the logits in place. Let it work on logits.clone().")
        if not torch.is_tensor(values) or values.shape != (len(batch),):
            got = f"shape {tuple(values.shape)}" if torch.is_tensor(values) else type(values).__name__
            raise MetricError(
                f"metric {self.name!r} returned {got} for {len(batch)} examples; it must return one value per example, "
                f"shape ({len(batch)},). Means are taken by circuitlab."
            )
        if values.is_complex():
            raise MetricError(f"metric {self.name!r} returned {values.dtype}; its values must be real numbers.")
        if not values.is_floating_point():
            values = values.to(logits.dtype)
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).nonzero()[0])
            kind = "NaN" if bool(values[bad].isnan()) else "an infinite value"
            raise MetricError(f"metric {self.name!r} returned {kind}, first for example {int(batch.index[bad])}.")
        # A metric may hold weights of its own; their gradients are nobody's business here.
        return values if logits.requires_grad else values.detach()


MetricLike = str | Metric | MetricFunction

# What a function may declare by an attribute of the same name.
DECLARED = (
    "unit",
    "what",
    "higher_is_better",
    "smooth",
    "natural_zero",
    "needs_distractor",
    "needs_reference",
    "whole_answer",
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="logit_diff",
            function=formulas.logit_diff,
            unit="logits",
            what="mean logit of the answers minus mean logit of the distractors",
            natural_zero=True,
            needs_distractor=True,
            local=True,
            source=WANG_2023,
        ),
        Metric(
            name="prob_diff",
            function=formulas.prob_diff,
            unit="probability",
            what="summed probability of the answers minus summed probability of the distractors",
            natural_zero=True,
            needs_distractor=True,
            source=HANNA_2023,
        ),
        Metric(
            name="log_prob",
            function=formulas.log_prob,
            unit="nats",
            what="log of the summed probability of the answers",
        ),
        Metric(
            name="kl",
            function=formulas.kl,
            unit="nats",
            what="KL divergence of the next-token distribution from the clean run's, whatever the answers are",
            higher_is_better=False,
            needs_reference=True,
            source=CONMY_2023,
        ),
        Metric(
            name="accuracy",
            function=formulas.accuracy,
            unit="share of examples",
            what="1 where no token is more likely than the most likely of the answers, else 0",
            smooth=False,
        ),
        Metric(
            name="rank",
            function=formulas.rank,
            unit="tokens above",
            what="number of tokens that are more likely than the most likely of the answers",
            higher_is_better=False,
            smooth=False,
        ),
        Metric(
            name="answer_log_prob",
            function=formulas.answer_log_prob,
            unit="nats",
            what="log-probability of the whole answer, of one or more tokens; the mean of several answers",
            whole_answer=True,
        ),
        Metric(
            name="answer_log_prob_diff",
            function=formulas.answer_log_prob_diff,
            unit="nats",
            what="log-probability of the whole answer minus that of the distractor, means of several",
            natural_zero=True,
            needs_distractor=True,
            whole_answer=True,
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names of the metrics that ship with the library.

    Returns:
        The names.
    """
    return tuple(METRICS)


def resolve(metric: MetricLike) -> Metric:
    """The metric meant by a name, a `Metric`, or a plain function.

    Names are those of `METRICS` and of the entry points `circuitlab.metrics`. A function may declare fields of `Metric`
    by attributes of the same name (`DECLARED`), such as `margin.natural_zero = True`.

    Returns:
        The metric.

    Raises:
        UnknownNameError: No metric has this name.
        MetricError: It is none of the three, or declares a field of the wrong type.
    """
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]
        found = resolve_object(plugins.find("metrics", metric, METRICS))
        return replace(found, name=metric)
    return resolve_object(metric)


def resolve_object(metric: Any) -> Metric:
    """The metric that a `Metric` or a function is; see `resolve`.

    Returns:
        The metric.

    Raises:
        MetricError: It is neither, or declares a field of the wrong type.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)
        declared = {field: getattr(metric, field) for field in DECLARED if hasattr(metric, field)}
        return Metric(name=name, function=cast("MetricFunction", metric), **declared)
    raise MetricError(f"a metric is a name, a Metric or a function of (logits, batch); got {type(metric).__name__}.")


def no_distractor(name: str, where: str) -> str:
    """The message for a metric that compares with distractors, where there are none.

    Returns:
        The message.
    """
    others = ", ".join(other.name for other in METRICS.values() if not other.needs_distractor)
    return (
        f"metric {name!r} compares answers with distractors, and {where}. Give every Example a distractor, or choose "
        f"a metric that needs none: {others}."
    )


def metric_for(metric: MetricLike | None, pairs: object) -> Metric:
    """The metric that pairs are judged by: every function that takes both follows this rule.

    Args:
        metric: The metric; may be the name of the task's own metric. None: the metric of the task that
            drew the pairs, and `logit_diff` for pairs without a task (`PairBatch.from_tokens`).
        pairs: The pairs, a `PairSet` or `PairBatch`, or the task that draws them.

    Returns:
        The metric.

    Raises:
        UnknownNameError: No metric has this name.
        MetricError: It is no metric, or judges one token and the pairs have answers of several.
    """
    of_pairs: MetricLike | None = getattr(pairs, "metric", None)
    if metric is None:
        found = resolve(DEFAULT if of_pairs is None else of_pairs)
    elif (
        isinstance(metric, str)
        and of_pairs is not None
        and not isinstance(of_pairs, str)
        and resolve(of_pairs).name == metric
    ):
        found = resolve(of_pairs)
    else:
        found = resolve(metric)
    if not found.whole_answer and isinstance(pairs, PairSet):
        _check_one_token(found, pairs)
    return found


def _check_one_token(metric: Metric, pairs: PairSet) -> None:
    for pair in pairs if pairs.whole_answers else ():
        for word, ids in zip(pair.answers + pair.distractors, pair.answer_tokens + pair.distractor_tokens, strict=True):
            if len(ids) > 1:
                raise MetricError(
                    f"metric {metric.name!r} judges the next token, and {word!r} of pair {pair.id!r} has {len(ids)} "
                    f"tokens. Take metric='{WHOLE}' (--metric {WHOLE}), or pairs with answers of one token."
                )
