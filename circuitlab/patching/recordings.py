"""The clean and, if there is one, the corrupted run of every pair, recorded once and kept while they fit.

Pairs are run in batches of one prompt length, cut so that the runs of a part fit the budget. A part is recorded when it
is needed. Recordings are kept as long as all of them together take no more than the budget (half of the free memory
where none is given); those that do not fit are recorded again when they are needed again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import Pairs, batches_for
from circuitlab.metrics import Metric
from circuitlab.metrics.checks import check_row_wise
from circuitlab.models.memory import available
from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Layout
from circuitlab.patching.runs.baseline import Baseline, record_baseline
from circuitlab.patching.runs.packing import budget_of, bytes_per_row, cut, recorded_streams, rows_per_pack
from circuitlab.resources import Resources

# Share of the free memory that recordings may take where no budget is given.
KEPT_SHARE = 0.5

PerExample = Float[np.ndarray, " example"]
T = TypeVar("T")


class Recordings:
    """Both runs of a data set, recorded once.

    Args:
        model: A loaded model.
        pairs: The data set.
        resources: The budget bounds the parts that are run at once, and what is kept of all of them.

    Attributes:
        n_recorded: How many examples were recorded so far, each time counted.

    Raises:
        ConfigError: The pairs are none; the budget does not hold one prompt.
        TokenError: A prompt that the model cannot read.
    """

    def __init__(self, model: Model, pairs: Pairs, resources: Resources) -> None:
        self.model, self._resources = model, resources
        self._whole = batches_for(model, pairs, whole_answers=True)
        self.n_examples = sum(batch.n_pairs for batch in self._whole)
        self.n_recorded = 0
        self._kept = dict[Hashable, Any]()
        self._last: tuple[int, Baseline] | None = None
        self._free = 0
        self._ends = dict[int, tuple[Metric, PerExample, PerExample | None]]()

    @cached_property
    def batches(self) -> tuple[PairBatch, ...]:
        """The prompts by length, in parts whose recordings fit the budget, or of one prompt."""
        model, found = self.model, list[PairBatch]()
        n_writers = len(Layout.of(model.spec).writers)
        # Beside the recordings every writer's difference, for edges and for circuits, which keep two of each.
        streams = max(recorded_streams(model) + n_writers, 2 * n_writers)
        for batch in self._whole:
            rows_per_pack(model, batch.n_tokens, self._resources)  # refuses a budget that does not hold one prompt
            size = budget_of(self._resources, model.device) // bytes_per_row(model, batch.n_tokens, streams)
            found += cut(batch, max(1, size))
        return tuple(found)

    def parts(self, streams: int) -> tuple[PairBatch, ...]:
        """The batches, cut further where runs with so many more streams of every prompt do not fit the budget.

        Returns:
            The batches.

        Raises:
            ConfigError: The budget does not hold one prompt.
        """
        return tuple(
            part
            for batch in self.batches
            for part in cut(batch, rows_per_pack(self.model, batch.n_tokens, self._resources, streams))
        )

    @property
    def by_length(self) -> tuple[PairBatch, ...]:
        """All prompts of a length in one batch, whatever the budget."""
        return self._whole

    def baseline(self, batch: PairBatch) -> Baseline:
        """Both runs of a batch of these: recorded, or kept from before.

        Returns:
            The runs.
        """
        number, start = self._places[int(batch.index[0])]
        whole = self.batches[number]
        if start + len(batch) > len(whole):  # longer than a part that fits
            self.n_recorded += len(batch)
            return record_baseline(self.model, batch)
        baseline = self._recorded(number)
        return baseline if len(batch) == len(whole) else baseline.take(slice(start, start + len(batch)))

    def clean(self, batch: PairBatch) -> Recording:
        """The clean run of a batch of these; run by itself where it was not kept.

        Returns:
            The run.
        """
        number, start = self._places[int(batch.index[0])]
        held = self._held(number)
        if held is not None and start + len(batch) <= len(held.batch):
            return held.clean.prompts(slice(start, start + len(batch)))
        self.n_recorded += len(batch)
        return self.model.record(batch.clean)

    def prompt(self, place: int) -> Recording:
        """The clean run of the pair at this place in the data set, of its prompt without tokens of answers.

        Returns:
            The run, a batch of one.
        """
        number, row = self._places[place]
        batch = self.batches[number]
        one = batch.take(torch.tensor([row], device=batch.clean.device))
        if one.prompt_end is None:
            return self.clean(one)
        self.n_recorded += 1
        return self.model.record(one.clean[:, : int(one.prompt_end) + 1])

    def baselines(self) -> Iterator[Baseline]:
        """Both runs of every batch, one after the other.

        Returns:
            The runs, recorded when they are reached.
        """
        return map(self.baseline, self.batches)

    def ends(self, *metrics: Metric) -> list[tuple[PerExample, PerExample | None]]:
        """Metrics of the clean and of the corrupted runs, in the order of the data set.

        Returns:
            For each metric its values in the clean and in the corrupted runs; None for these without corrupted prompts.

        Raises:
            MetricError: The metric of an example depends on the other examples (`circuitlab.metrics.checks`).
        """
        missing = [metric for metric in metrics if id(metric) not in self._ends]
        found = np.zeros((len(missing), 1 + self.has_corrupted, self.n_examples))
        for place, baseline in enumerate(self.baselines() if missing else ()):
            where = baseline.batch.places.cpu().numpy()
            for number, metric in enumerate(missing):
                if not place:
                    check_row_wise(metric, baseline.clean_logits, baseline.batch)
                runs = [baseline.clean_logits, *([baseline.corrupt_logits] if baseline.corrupted else [])]
                values = torch.stack([metric(logits, baseline.batch) for logits in runs]).double()
                found[number][:, where] = baseline.batch.per_pair(values).cpu().numpy()
        for metric, values in zip(missing, found, strict=True):
            self._ends[id(metric)] = metric, values[0], values[1] if self.has_corrupted else None
        return [self._ends[id(metric)][1:] for metric in metrics]

    @property
    def has_corrupted(self) -> bool:
        """Whether the pairs have corrupted prompts."""
        return self._whole[0].corrupt is not None

    def derived(self, kind: Hashable, baseline: Baseline, make: Callable[[], T]) -> T:
        """Something made of the runs of one of the batches: kept from before, or made and kept where it fits.

        Args:
            kind: What it is.
            baseline: The batch.
            make: Makes it.

        Returns:
            What `make` returned.
        """
        key = kind, int(baseline.batch.index[0]), len(baseline.batch)
        if key not in self._kept:
            found = make()
            if not self._keep(key, found):
                return found
        return self._kept[key]

    def release(self) -> None:
        """Forget the runs: memory for what comes next. They are recorded again when they are needed."""
        self._kept.clear()
        self._last = None

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Which part a pair is in, and its first row there, by its place in the data set."""
        return {
            place: (number, row)
            for number, batch in enumerate(self.batches)
            for row, place in reversed([*enumerate(batch.index.tolist())])
        }

    def _held(self, number: int) -> Baseline | None:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        return self._kept.get(number)

    def _recorded(self, number: int) -> Baseline:
        if (held := self._held(number)) is not None:
            return held
        self._last = None  # its memory serves the next one
        if not self._kept:
            budget, device = budget_of(self._resources, self.model.device), self.model.device
            given = self._resources.budget is not None
            self._free = budget if given else max(budget, int(KEPT_SHARE * available(device)))
        baseline = record_baseline(self.model, self.batches[number])
        self.n_recorded += len(baseline.batch)
        if not self._keep(number, baseline):
            self._last = number, baseline
        return baseline

    def _keep(self, key: Hashable, value: object) -> bool:
        """Keep a value if it fits beside the others."""
        size = n_bytes(value)
        if size <= self._free:
            self._kept[key] = value
            self._free -= size
        return key in self._kept


def n_bytes(value: object) -> int:
    """Bytes of all tensors in a record of records and tuples.

    Returns:
        Bytes.
    """
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(n_bytes, value))
    if is_dataclass(value):
        return sum(n_bytes(getattr(value, item.name)) for item in fields(value))
    return 0
