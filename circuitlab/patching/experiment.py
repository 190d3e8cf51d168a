"""An experiment: a model on pairs of prompts, judged by a metric, with a replacement for what is taken away.

Scores, sweeps, circuits and their tests are all about one such value. It records every run once (`Recordings`),
resolves its replacement once, and checks once, by one rule (`circuitlab.patching.gap`), that there is something to
explain. Public functions make one of their arguments; the functions below them take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric, MetricLike, metric_for
from circuitlab.metrics.checks import check_gradient
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.neuron_parts import run_without
from circuitlab.patching.circuits.packed import run_packed
from circuitlab.patching.gap import Gap, check_gap
from circuitlab.patching.recordings import PerExample, Recordings
from circuitlab.patching.runs.ablation import AblatedRun, ablated_run
from circuitlab.patching.runs.baseline import Baseline, at_answer
from circuitlab.patching.runs.replacement import AblationLike, Replacement, as_replacement, resolve_replacement
from circuitlab.progress import Progress, silent
from circuitlab.resources import Resources

Masks = Bool[np.ndarray, "circuit writer reader"]
Neurons = Bool[np.ndarray, "writer d_model"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """A model on pairs, judged by a metric, with a replacement.

    Values per example stand in the order of the pairs. Nothing runs before it is asked for.

    Attributes:
        model: A loaded model.
        pairs: The data set.
        judged_by: What is measured at the answer position; by default the metric of the task that drew the pairs, else
            `logit_diff`. `metric` is the resolved one.
        ablation: What is put in the place of a value that is taken away: a name of `REPLACEMENTS`, a `Replacement`, or
            a function (see `Replacement.function`); `replacement` is the resolved one.
        reference: Prompts that means are taken of; none of them may be among the pairs.
        seed: Of noise.
        allow_weak_gap: Accept a gap that the pairs do not tell from 0.
        budget: Bytes that a packed run may take, and recordings may keep; None for shares of what is free.
        progress: Called with (step, done, total).

    Raises:
        UnknownNameError: No such ablation.
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

    def under_corrupt(self) -> Experiment:
        """The same with the corrupted run's values as replacement; it shares recordings and the gap of the prompts."""
        if as_replacement(self.ablation).kind == "corrupt":
            return self
        other = self._like("metric", "prompt_gap", ablation="corrupt", reference=None)
        other.__dict__["replacement"] = Replacement(kind="corrupt")
        return other

    def measured_by(self, metric: Metric) -> Experiment:
        """The same by another metric; it shares recordings and replacement."""
        if metric is self.metric:
            return self
        return self._like("replacement", judged_by=metric, ablation=self.replacement, reference=None)

    def quiet(self) -> Experiment:
        """The same without progress; it shares all that was found already."""
        found = ("metric", "replacement", "empty", "gap", "prompt_gap")
        return self._like(*found, progress=silent, ablation=self.replacement, reference=None)

    def on(self, pairs: PairSet | PairBatch) -> Experiment:
        """The same on some of its pairs, each as often as wanted, without progress and with any gap."""
        own = {"judged_by": self.metric, "ablation": self.replacement, "reference": None}
        other = replace(self, pairs=pairs, allow_weak_gap=True, progress=silent, **own)
        other.__dict__["replacement"] = self.replacement
        return other

    @property
    def resources(self) -> Resources:
        """Budget and progress, for functions that know no pairs."""
        return Resources(self.budget, self.progress)

    @cached_property
    def metric(self) -> Metric:
        """What is measured at the answer position."""
        return metric_for(self.judged_by, self.pairs)

    @cached_property
    def recordings(self) -> Recordings:
        """Both runs of the pairs; experiments on the same pairs share them."""
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

    @cached_property
    def replacement(self) -> Replacement:
        """What is put in the place of a value that is taken away, resolved for these pairs."""
        return resolve_replacement(
            self.model,
            self.ablation,
            pairs=self.pairs,
            means_of=self.reference,
            seed=self.seed,
            resources=self.resources,
        )

    def ablated(self, baseline: Baseline) -> AblatedRun:
        """The run of a batch in which every edge carries its replacement."""
        if self.replacement.kind == "corrupt":
            return AblatedRun.corrupted(baseline)
        replacement = self.replacement
        return self.recordings.derived(replacement, baseline, lambda: ablated_run(self.model, baseline, replacement))

    @property
    def clean(self) -> PerExample:
        """The metric of the whole model on the clean prompts."""
        return self.recordings.ends(self.metric)[0][0]

    @property
    def corrupt(self) -> PerExample:
        """The metric of the whole model on the corrupted prompts."""
        return self.recordings.ends(self.metric)[0][1]

    @cached_property
    def empty(self) -> PerExample:
        """The metric of the empty circuit, in which every edge is replaced; the corrupted run's for "corrupt"."""
        if self.replacement.kind == "corrupt":
            return self.corrupt
        found = np.zeros(self.n_examples)
        for baseline, ablated in self.runs:
            stream = at_answer(ablated.run.resid_final, baseline.batch.answer_at)
            found[baseline.batch.index.cpu().numpy()] = self._judged(self.metric, stream, baseline)
        return found

    @cached_property
    def gap(self) -> Gap:
        """What faithfulness is a share of: m(clean) - m(empty circuit).

        Raises:
            MetricError: The pairs do not tell the two from each other (`circuitlab.patching.gap`).
        """
        if self.replacement.kind == "corrupt":
            return self.prompt_gap
        where = f"in the empty circuit (ablation {self.replacement.kind!r})"
        return check_gap(self.metric, self.clean, self.empty, where, allow_weak_gap=self.allow_weak_gap)

    @cached_property
    def prompt_gap(self) -> Gap:
        """What a patch's effect is a share of: m(clean) - m(corrupted), whatever the ablation.

        Raises:
            MetricError: The pairs do not tell the two from each other (`circuitlab.patching.gap`).
        """
        return check_gap(self.metric, self.clean, self.corrupt, allow_weak_gap=self.allow_weak_gap)

    def check_gradient(self, shares: Sequence[float], method: str) -> None:
        """Refuse a metric without a gradient where a method takes it; nothing is asked where `shares` is empty.

        Raises:
            MetricError: It has none on the first batch.
        """
        if shares:
            first = self.recordings.baseline(self.batches[0])
            check_gradient(self.metric, first.clean_logits, first.corrupt_logits, first.batch, shares, method)

    def values(
        self, masks: Masks, step: str | None = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, "circuit example"]:
        """The metric of every circuit on every example; arguments as of `measure`."""
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
        """
        out = {metric.name: np.zeros((len(masks), self.n_examples)) for metric in metrics}
        done, total = 0, len(masks) * len(self.batches)
        for baseline in self.baselines if len(masks) else ():
            where = baseline.batch.index.cpu().numpy()
            for pack, final in run_packed(self.model, baseline, self.ablated(baseline), masks, neurons, self.resources):
                for circuit, stream in zip(pack, final, strict=True):
                    logits = self.model.logits(stream)
                    for metric in metrics:
                        out[metric.name][circuit, where] = metric(logits, baseline.batch).double().cpu().numpy()
                done += len(pack)
                if step is not None:
                    self.progress(step, done, total)
        return out

    def faithfulness(
        self, masks: Masks, step: str = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of every circuit: means over examples first, then the ratio; arguments as of `measure`."""
        return self._share(self.values(masks, step, neurons=neurons))

    def faithfulness_without(
        self, masks: Masks, step: str = "circuits", *, neurons: Neurons | None = None
    ) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of the whole model without these edges, or without these neurons along them."""
        if neurons is None:
            return self.faithfulness(real_edges(Layout.of(self.model.spec)) & ~masks, step)
        found, done = np.zeros((len(masks), self.n_examples)), 0
        for baseline, ablated in self.runs:
            where = baseline.batch.index.cpu().numpy()
            for number, stream in run_without(self.model, baseline, ablated, masks, neurons, self.resources):
                found[number, where] = self._judged(self.metric, stream, baseline)
                done += 1
                self.progress(step, done, len(masks) * len(self.batches))
        return self._share(found)

    def _like(self, *found: str, **changes: Any) -> Experiment:
        """The same pairs but for these changes, with these properties as far as they were found already."""
        other, shared = replace(self, **changes), {"recordings": self.recordings}
        other.__dict__.update(shared | {name: self.__dict__[name] for name in found if name in self.__dict__})
        return other

    def _share(self, values: Float[np.ndarray, "circuit example"]) -> Float[np.ndarray, " circuit"]:
        return (values.mean(1) - self.empty.mean()) / self.gap.mean

    @torch.no_grad()
    def _judged(self, metric: Metric, stream: Float[Tensor, "batch d_model"], baseline: Baseline) -> Any:
        return metric(self.model.logits(stream), baseline.batch).double().cpu().numpy()
