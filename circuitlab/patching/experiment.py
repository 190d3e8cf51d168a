"""An experiment: a model on pairs of prompts, judged by a metric, with a replacement for what is ablated.

Scores, sweeps, circuits and their tests are all about one such value. It records every run once (`Recordings`),
resolves its replacement once, and checks once, by one rule (`circuitlab.patching.gap`), that there is something to
explain. Public functions make one of their arguments; the functions below them take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import check_corrupted
from circuitlab.data.pairs import PairSet
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.metrics.checks import check_gradient
from circuitlab.models.protocol import Model
from circuitlab.models.verify import verify_once
from circuitlab.parts import Layout
from circuitlab.patching.circuits.clean_start import CleanStart
from circuitlab.patching.circuits.packed import run_packed
from circuitlab.patching.circuits.soft_circuit import run_without
from circuitlab.patching.gap import Gap, check_gap
from circuitlab.patching.recordings import PerExample, Recordings
from circuitlab.patching.runs.ablation import AblatedRun, ablated_run
from circuitlab.patching.runs.baseline import Baseline, at_answer, judge
from circuitlab.patching.runs.packing import circuits_per_pack, packs
from circuitlab.patching.runs.replacement import (
    CORRUPT_NEEDS,
    AblationLike,
    Replacement,
    as_replacement,
    resolve_replacement,
)
from circuitlab.progress import Progress, silent
from circuitlab.resources import Resources

Masks = Bool[np.ndarray, "circuit writer reader"]
Neurons = Bool[np.ndarray, "writer d_model"]
# Tokens in one run of circuits from the clean run, at most; a search asks for half as many, and up to half more after
# predictions that are certain. Measured on the 4-layer model of the benchmark, one thread: ACDC takes 2.6 s with 12
# circuits of 64 x 16 tokens in a run, 2.8 s with 14, 2.9 s with 16, where more predictions are in vain, 3.0 s with 8.
SEARCH_TOKENS = 24576
T = TypeVar("T")


def _once(make: Callable[[Experiment], T]) -> Callable[[Experiment], T]:
    """Compute a value once and keep it in `Experiment.known`."""

    @wraps(make)
    def get(experiment: Experiment) -> T:
        if make.__name__ not in experiment.known:
            experiment.known[make.__name__] = make(experiment)
        return experiment.known[make.__name__]

    return get


@dataclass(frozen=True, eq=False)
class Experiment:
    """A model on pairs, judged by a metric, with a replacement.

    Values per example are in the order of the pairs. Nothing runs before it is needed.

    Attributes:
        model: A loaded model.
        pairs: The data set.
        judged_by: What is measured at the answer position; by default the metric of the task that drew the pairs, else
            `logit_diff`. `metric` is the resolved one.
        ablation: The replacement of a value that is ablated: a name of `REPLACEMENTS`, a `Replacement`, or
            a function (see `Replacement.function`); `replacement` is the resolved one.
        reference: Prompts that means are taken of; none of them may be among the pairs.
        seed: Of noise.
        allow_weak_gap: Accept a gap whose interval holds 0.
        budget: Bytes that a packed run may take, and recordings may keep; None for shares of what is free.
        progress: Called with (step, done, total).
        known: What was computed already, by name; experiments made of this one share what holds for them too.

    Raises:
        UnknownNameError: No such ablation.
        UnsupportedModelError: A step of a model of the user's own class differs from its record of a whole run.
        ConfigError: What `resolve_replacement` refuses; a budget that holds no prompt.
        MetricError: The metric is none; the metric of an example depends on the other examples.

    Example:
        >>> experiment = Experiment(model, task.pairs(model).held_out, ablation="zero")  # doctest: +SKIP
        >>> experiment.faithfulness(circuit.mask[None])  # doctest: +SKIP
    """

    model: Model
    pairs: PairSet | PairBatch
    judged_by: MetricLike | None = None
    ablation: AblationLike = "corrupt"
    reference: PairSet | PairBatch | None = None
    seed: int = 0
    allow_weak_gap: bool = False
    budget: int | None = None
    progress: Progress = silent
    known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def under_corrupt(self) -> Experiment:
        """The same with the corrupted run's values as replacement; it shares recordings and the gap of the prompts.

        Returns:
            The experiment.

        Raises:
            ConfigError: The pairs have no corrupted prompts.
        """
        check_corrupted(self.pairs, *CORRUPT_NEEDS)
        if as_replacement(self.ablation).kind == "corrupt":
            return self
        found = self._like("metric", "prompt_gap", ablation="corrupt", reference=None)
        found.known["replacement"] = Replacement(kind="corrupt")
        return found

    def measured_by(self, metric: Metric) -> Experiment:
        """The same by another metric; it shares recordings and replacement.

        Returns:
            The experiment.
        """
        if metric is self.metric:
            return self
        return self._like("replacement", judged_by=metric, ablation=self.replacement, reference=None)

    def quiet(self) -> Experiment:
        """The same without progress; it shares all that was computed already.

        Returns:
            The experiment.
        """
        return self._like(*self.known, "replacement", progress=silent, ablation=self.replacement, reference=None)

    def on(self, pairs: PairSet | PairBatch) -> Experiment:
        """The same on some of its pairs, each as often as wanted, without progress and with any gap.

        Returns:
            The experiment.
        """
        settings = {"judged_by": self.metric, "ablation": self.replacement, "reference": None}
        found = replace(self, pairs=pairs, allow_weak_gap=True, progress=silent, **settings)
        found.known["replacement"] = self.replacement
        return found

    @property
    def resources(self) -> Resources:
        """Budget and progress, for functions that know no pairs."""
        return Resources(self.budget, self.progress)

    @property
    @_once
    def metric(self) -> Metric:
        """What is measured at the answer position."""
        return metric_for(self.judged_by, self.pairs)

    @property
    @_once
    def recordings(self) -> Recordings:
        """Both runs of the pairs; experiments on the same pairs share them."""
        verify_once(self.model)
        return Recordings(self.model, self.pairs, self.resources)

    @property
    def n_examples(self) -> int:
        """How many pairs there are."""
        return self.recordings.n_examples

    @property
    def batches(self) -> tuple[PairBatch, ...]:
        """The pairs by prompt length, in parts whose recordings fit the budget."""
        return self.recordings.batches

    @property
    def baselines(self) -> Iterator[Baseline]:
        """Both runs of each of the batches, one after the other."""
        return self.recordings.baselines()

    @property
    def runs(self) -> Iterator[tuple[Baseline, AblatedRun]]:
        """Both runs of each of the batches, and the run in which every edge is replaced."""
        return ((baseline, self.ablated(baseline)) for baseline in self.baselines)

    @property
    @_once
    def replacement(self) -> Replacement:
        """The replacement of a value that is ablated, resolved for these pairs."""
        return resolve_replacement(
            self.model, self.ablation, pairs=self.pairs, means_of=self.reference, seed=self.seed,
            resources=self.resources,
        )  # fmt: skip

    def ablated(self, baseline: Baseline) -> AblatedRun:
        """The run of a batch in which every edge carries its replacement.

        Returns:
            The run: the empty circuit.
        """
        if self.replacement.kind == "corrupt":
            return AblatedRun.corrupted(baseline)
        replacement = self.replacement
        return self.recordings.derived(replacement, baseline, lambda: ablated_run(self.model, baseline, replacement))

    @property
    def clean(self) -> PerExample:
        """The metric of the whole model on the clean prompts."""
        return self.recordings.ends(self.metric)[0][0]

    @property
    def corrupt(self) -> PerExample | None:
        """The metric of the whole model on the corrupted prompts; None for pairs without."""
        return self.recordings.ends(self.metric)[0][1]

    @property
    def unit_end(self) -> PerExample:
        """The metric where a patch's effect is a share of 0: of `corrupt`, or of `empty` without corrupted prompts."""
        return self.empty if self.corrupt is None else self.corrupt

    @property
    @_once
    def empty(self) -> PerExample:
        """The metric of the empty circuit, in which every edge is replaced; the corrupted run's for "corrupt"."""
        if self.replacement.kind == "corrupt" and self.corrupt is not None:
            return self.corrupt
        found = np.zeros(self.n_examples)
        for baseline, ablated in self.runs:
            stream = at_answer(ablated.run.resid_final, baseline.batch.answer_at)
            found[baseline.batch.places.cpu().numpy()] = self._judged(self.metric, stream, baseline)
        return found

    @property
    @_once
    def gap(self) -> Gap:
        """What faithfulness is a share of: m(clean) - m(empty circuit).

        Raises:
            MetricError: The pairs do not tell the two from each other (`circuitlab.patching.gap`).
        """
        if self.replacement.kind == "corrupt":
            return self.prompt_gap
        where = f"in the empty circuit (ablation {self.replacement.kind!r})"
        return check_gap(self.metric, self.clean, self.empty, where, allow_weak_gap=self.allow_weak_gap)

    @property
    @_once
    def prompt_gap(self) -> Gap:
        """What a patch's effect is a share of: m(clean) - m(corrupted), whatever the ablation; `gap` without them.

        Raises:
            MetricError: The pairs do not tell the two from each other (`circuitlab.patching.gap`).
        """
        if self.corrupt is None:
            return self.gap
        return check_gap(self.metric, self.clean, self.corrupt, allow_weak_gap=self.allow_weak_gap)

    def check_gradient(self, shares: Sequence[float], method: str) -> None:
        """Refuse a metric without a gradient where a method takes it; nothing is checked where `shares` is empty.

        Raises:
            MetricError: It has none on the first batch.
        """
        if shares:
            first = self.recordings.baseline(self.batches[0])
            if first.corrupted is not None:
                other = first.corrupt_logits
            else:
                other = self.model.logits(at_answer(self.ablated(first).run.resid_final, first.batch.answer_at))
            check_gradient(self.metric, first.clean_logits, other, first.batch, shares, method)

    def values(
        self, masks: Masks, step: str | None = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, "circuit example"]:
        """The metric of every circuit on every example; arguments as of `measure`.

        Returns:
            Values `[circuit, example]`, in the metric's unit.
        """
        return self.measure(masks, [self.metric], step, neurons=neurons)[self.metric.name]

    @torch.no_grad()
    def measure(
        self, masks: Masks, metrics: Sequence[Metric], step: str | None = "circuits", *, neurons: Neurons | None = None
    ) -> dict[str, Float[np.ndarray, "circuit example"]]:
        """Several metrics of every circuit on every example, by name; they share the runs.

        Args:
            masks: Kept edges of each circuit; all others carry the replacement.
            metrics: What is measured.
            step: What the progress is called; None reports none.
            neurons: Which components of a writer's output kept edges carry; all by default.

        Returns:
            Name of the metric -> values `[circuit, example]`.
        """
        out = {metric.name: np.zeros((len(masks), self.n_examples)) for metric in metrics}
        done, total = 0, len(masks) * len(self.batches)
        for baseline in self.baselines if len(masks) else ():
            where = baseline.batch.places.cpu().numpy()
            for pack, final in run_packed(self.model, baseline, self.ablated(baseline), masks, neurons, self.resources):
                for circuit, stream in zip(pack, final, strict=True):
                    logits = self.model.logits(stream)
                    for metric in metrics:
                        values = baseline.batch.per_pair(metric(logits, baseline.batch).double())
                        out[metric.name][circuit, where] = values.cpu().numpy()
                done += len(pack)
                if step is not None:
                    self.progress(step, done, total)
        return out

    @property
    def circuits_at_once(self) -> int:
        """How many circuits a search gives `values_from_clean` in one call."""
        return max(1, min(size for _, _, size in self._clean_starts) // 2)

    def values_from_clean(self, masks: Masks) -> Float[np.ndarray, "circuit example"]:
        """`values` of circuits that are run from the clean run: for searches, which cut edge after edge.

        Args:
            masks: Kept edges of each circuit; they share what they have in common with each other and earlier calls.

        Returns:
            Values `[circuit, example]`, in the metric's unit.
        """
        out = np.zeros((len(masks), self.n_examples))
        for baseline, start, size in self._clean_starts:
            where = baseline.batch.places.cpu().numpy()
            for part in packs(len(masks), size):
                final = start.run(masks[part])
                example = torch.arange(final.shape[1], device=final.device).repeat(len(final))
                found = judge(self.model, self.metric, baseline, final.flatten(0, 1), example)
                out[part, where] = baseline.batch.per_pair(found.double().view(len(final), -1)).cpu().numpy()
        return out

    def faithfulness(
        self, masks: Masks, step: str = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of every circuit: means over examples first, then the ratio; arguments as of `measure`.

        Returns:
            One share a circuit: 0 for the empty circuit, 1 for the whole model.
        """
        return self._share(self.values(masks, step, neurons=neurons))

    def faithfulness_without(
        self, masks: Masks, step: str = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of the whole model without these edges, or without these neurons along them.

        Returns:
            One share a circuit.
        """
        if neurons is None:
            return self.faithfulness(real_edges(Layout.of(self.model.spec)) & ~masks, step)
        found, done = np.zeros((len(masks), self.n_examples)), 0
        for baseline, ablated in self.runs:
            where = baseline.batch.places.cpu().numpy()
            for number, stream in run_without(self.model, baseline, ablated, masks, neurons, self.resources):
                found[number, where] = self._judged(self.metric, stream, baseline)
                done += 1
                self.progress(step, done, len(masks) * len(self.batches))
        return self._share(found)

    def _like(self, *names: str, **changes: Any) -> Experiment:
        """The same pairs but for these changes, with these values as far as they were computed already."""
        other = replace(self, **changes)
        other.known.update({name: self.known[name] for name in names if name in self.known})
        other.known["recordings"] = self.recordings
        return other

    @property
    @_once
    def _clean_starts(self) -> list[tuple[Baseline, CleanStart, int]]:
        """Every batch, ready to run circuits from its clean run, and how many of them at once."""
        layout, found = Layout.of(self.model.spec), []
        # Every writer's difference to its replacement, and every reader's input, beside the recordings.
        for batch in self.recordings.parts(3 * len(layout.writers) + len(layout.readers)):
            baseline = self.recordings.baseline(batch)
            size = circuits_per_pack(self.model, batch, self.resources, SEARCH_TOKENS, len(layout.nodes))
            found.append((baseline, CleanStart(self.model, baseline, self.ablated(baseline)), size))
        return found

    def _share(self, values: Float[np.ndarray, "circuit example"]) -> Float[np.ndarray, " circuit"]:
        return (values.mean(1) - self.empty.mean()) / self.gap.mean

    @torch.no_grad()
    def _judged(self, metric: Metric, stream: Float[Tensor, "batch d_model"], baseline: Baseline) -> Any:
        return baseline.batch.per_pair(metric(self.model.logits(stream), baseline.batch).double()).cpu().numpy()
