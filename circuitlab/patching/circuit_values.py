"""A metric of circuits that are run from the clean run, on a whole data set: for searches that cut edge after edge."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.parts import Layout
from circuitlab.patching.circuits.clean_start import CleanStart
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.packing import packs, rows_per_pack

# Tokens in one run of several circuits: so many, and at most twice as many after predictions that are certain. Measured
# on the 4-layer model of the benchmark, one thread: ACDC takes 2.6 s with 12 circuits of 64 x 16 tokens in a run, 2.8 s
# with 14, 2.9 s with 16, where more predictions are in vain, and 3.0 s with 8.
TOKENS_AT_ONCE, MOST_TOKENS = 12288, 24576


class CircuitValues:
    """A data set with both runs recorded, ready to judge circuits that share most of their edges.

    Args:
        experiment: The pairs, what is measured, and what cut edges carry.

    Raises:
        ConfigError: A budget that holds no prompt.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._model, self.metric, self.experiment = experiment.model, experiment.metric, experiment
        layout = Layout.of(self._model.spec)
        # How far every writer's replacement is from the clean run, and what every reader reads, beside the recordings.
        streams = 3 * len(layout.writers) + len(layout.readers)
        recordings = experiment.recordings
        self._baselines = [recordings.baseline(batch) for batch in recordings.parts(streams)]
        self._starts = [CleanStart(self._model, one, experiment.ablated(one)) for one in self._baselines]
        self._words = dict[tuple[int, int], tuple[Tensor | None, PairBatch]]()

    @property
    def at_once(self) -> int:
        """How many circuits to run in one call, by the largest batch."""
        return min(self._fitting(baseline.batch, TOKENS_AT_ONCE) for baseline in self._baselines)

    def of(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[np.ndarray, "circuit example"]:
        """The metric of every circuit on every example, in the order of the data set."""
        out = np.zeros((len(masks), self.experiment.n_examples))
        for baseline, start in zip(self._baselines, self._starts, strict=True):
            where = baseline.batch.index.cpu().numpy()
            for part in packs(len(masks), self._fitting(baseline.batch, MOST_TOKENS)):
                final = start.run(masks[part])
                values = self._judged(baseline, final)
                out[part, where] = values.double().unflatten(0, (len(final), -1)).cpu().numpy()
        return out

    def _judged(self, baseline: Baseline, final: Float[Tensor, "circuit batch d_model"]) -> Float[Tensor, " row"]:
        """The metric of final streams; which words it needs is worked out once for every number of circuits."""
        key = id(baseline), len(final)
        if key not in self._words:
            words, batch = baseline.batch.compact() if self.metric.local else (None, baseline.batch)
            example = torch.arange(len(batch), device=self._model.device)
            self._words[key] = words, batch.take(example.repeat(len(final)))
        words, batch = self._words[key]
        return self.metric(self._model.logits(final.flatten(0, 1), words), batch)

    def _fitting(self, batch: PairBatch, n_tokens: int) -> int:
        """How many circuits on a batch have so many tokens and fit the budget."""
        # How far every writer is from the clean run, at most.
        streams = len(Layout.of(self._model.spec).nodes)
        fit = rows_per_pack(self._model, batch.n_tokens, self.experiment.resources, extra_streams=streams) // len(batch)
        return max(1, min(fit, n_tokens // (len(batch) * batch.n_tokens)))
