"""The faithfulness of a circuit on pairs, and warnings about it in plain sentences.

A circuit does not explain the behaviour where the 95 % interval of its faithfulness is below `SHARE`, and exceeds the
model where it is as far above 1. Faithfulness on the discovery pairs and on these pairs disagree where their 95 %
intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlab import stats
from circuitlab.graphs.selection import Selection
from circuitlab.patching.gap import Gap
from circuitlab.result import Result

SHARE = 0.5
# Intervals of fewer pairs do not generalize to other pairs.
FEWEST = 2

# Faithfulness of circuits with the same edges, run in other batches, differs by less; one that keeps every edge ties.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Faithfulness(Result):
    """The metric of a circuit, of the whole model and of the empty circuit, per example.

    Attributes:
        metric: Name of the metric.
        ablation: The values of excluded edges.
        clean: Metric of the whole model on the clean prompts.
        corrupt: Metric of the whole model on the corrupted prompts; None for pairs without.
        empty: Metric of the empty circuit, in which every edge is replaced; equal to `corrupt` for ablation "corrupt".
        circuit: Metric of the circuit.
        random: Faithfulness of random connected circuits with as many edges.
        seed: Random seed of the interval and the random circuits.
        selection: The selection of the circuit, where it is known.
        n_seen: Number of these pairs with a prompt that the circuit was selected on, where it is known.
        notes: Sentences to add to the warnings, such as settings that differ from those of the run.
    """

    metric: str
    ablation: str
    clean: Float[np.ndarray, " example"]
    corrupt: Float[np.ndarray, " example"] | None
    empty: Float[np.ndarray, " example"]
    circuit: Float[np.ndarray, " example"]
    random: tuple[float, ...]
    seed: int
    selection: Selection | None = None
    n_seen: int = 0
    notes: tuple[str, ...] = ()

    @property
    def faithfulness(self) -> float:
        """(m(circuit) - m(empty)) / (m(clean) - m(empty)), means over examples first.

        References:
            Marks et al. 2024, arXiv:2403.19647; Mueller et al. 2025 (MIB), arXiv:2504.13151.
        """
        return float(stats.ratio_of_means(self.circuit - self.empty, self.clean - self.empty))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the faithfulness over examples."""
        found = stats.ratio_interval(self.circuit - self.empty, self.clean - self.empty, self.seed)
        return float(found.low), float(found.high)

    @property
    def gap(self) -> Gap:
        """The denominator of the faithfulness, m(clean) - m(empty), with its standard error."""
        return Gap.of(self.clean, self.empty)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about these numbers in plain sentences, the most severe first.

        A faithfulness whose interval is below 0.5 or above 1.5, random circuits that reach it, a disagreement with the
        discovery pairs, pairs that are not held out, a target that was not reached.

        Returns:
            The sentences; empty for a circuit that explains the behaviour.
        """
        return tuple(_sentences(self))


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Write a number with its 95 % interval.

    Returns:
        The text.

    Example:
        >>> with_interval(0.137, (0.101, 0.18))
        '0.137 (95 % interval [0.101, 0.180])'
    """
    shown, low, high = (f"{round(number, 3) + 0.0:.3f}" for number in (value, *interval))  # + 0.0: no "-0.000"
    return f"{shown} (95 % interval [{low}, {high}])"


def _sentences(found: Faithfulness) -> Iterator[str]:
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


def _against_discovery(found: Faithfulness, written: str) -> Iterator[str]:
    """Agreement with the faithfulness on the discovery pairs."""
    then = found.selection
    if then is None or then.metric is None or found.notes:
        return  # the difference is in the notes, or not known
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
