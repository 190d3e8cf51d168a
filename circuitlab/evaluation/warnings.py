"""What bounds an evaluation, in plain sentences: for whoever reads a number without its interval.

A circuit is said not to explain the behaviour where the 95 % interval of its faithfulness stays below `SHARE`, and to
exceed the model where it stays as far above 1. Faithfulness on the discovery pairs and on these pairs disagree where
their 95 % intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from circuitlab.graphs.selection import Selection
from circuitlab.patching.gap import Gap

SHARE = 0.5
# Intervals of fewer pairs say nothing of other pairs.
FEWEST = 2

# Faithfulness of circuits with the same edges, run in other batches, differs by less; one that keeps every edge ties.
ROUNDING = 1e-9


class Judged(Protocol):
    """What is read of an `Evaluation`; its attributes say what each is."""

    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def ablation(self) -> str: ...  # noqa: D102
    @property
    def clean(self) -> Float[np.ndarray, " example"]: ...  # noqa: D102
    @property
    def faithfulness(self) -> float: ...  # noqa: D102
    @property
    def interval(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def gap(self) -> Gap: ...  # noqa: D102
    @property
    def random(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def n_seen(self) -> int: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def selection(self) -> Selection | None: ...  # noqa: D102


def warnings_of(found: Judged) -> tuple[str, ...]:
    """Every sentence that applies, the gravest first; empty for a circuit that explains the behaviour."""
    return tuple(_sentences(found))


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A number with its 95 % interval.

    Example:
        >>> with_interval(0.137, (0.101, 0.18))
        '0.137 (95 % interval [0.101, 0.180])'
    """
    shown, low, high = (f"{round(number, 3) + 0.0:.3f}" for number in (value, *interval))  # + 0.0: no "-0.000"
    return f"{shown} (95 % interval [{low}, {high}])"


def _sentences(found: Judged) -> Iterator[str]:
    yield from found.notes
    reached, (low, high) = found.faithfulness, found.interval
    if not math.isfinite(reached):
        yield "Faithfulness could not be measured: the whole model and the empty circuit have the same metric."
        return
    if found.gap.weak:
        yield (
            f"These pairs do not tell the whole model from the empty circuit: the 99 % interval of the gap, "
            f"[{found.gap.low:.3g}, {found.gap.high:.3g}], holds 0. Faithfulness, a share of it, means nothing."
        )
    written = with_interval(reached, (low, high))
    if not high >= SHARE:
        yield f"This circuit does not explain the behaviour: its faithfulness is {written}, below {SHARE}."
    elif low > 2 - SHARE:
        yield (
            f"This circuit exceeds the whole model: its faithfulness is {written}, above {2 - SHARE}. Edges that work "
            "against the answer are missing."
        )
    if matched := sum(value >= reached - ROUNDING for value in found.random):
        yield (
            f"{matched} of {len(found.random)} random circuits with as many edges reach its faithfulness or more: size "
            "alone may explain it."
        )
    yield from _against_discovery(found, written)
    if found.n_seen:
        yield (
            f"{found.n_seen} of these {len(found.clean)} pairs have prompts that the circuit was selected on: this is "
            "no held-out test."
        )
    if found.selection:
        yield from found.selection.warnings


def _against_discovery(found: Judged, written: str) -> Iterator[str]:
    """How the faithfulness agrees with that on the discovery pairs."""
    then = found.selection
    if then is None or then.metric is None or found.notes:
        return  # what differs is said, or not known
    for what, before, now in (("metric", then.metric, found.metric), ("ablation", then.ablation, found.ablation)):
        if before not in (None, now):
            yield f"The circuit was selected under {what} {before} and is judged under {what} {now}."
            return
    if then.interval is None or then.faithfulness is None or min(len(found.clean), then.n_pairs or 0) < FEWEST:
        return
    (low, high), (low_then, high_then) = found.interval, then.interval
    if low > high_then or high < low_then:
        yield (
            f"Faithfulness is {written} on these pairs but {with_interval(then.faithfulness, then.interval)} on the "
            "pairs that the circuit was selected on: the intervals do not overlap. Select on more pairs."
        )
