"""Metrics of circuits on a data set: batches by length, circuits packed to the memory budget, one value per example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitlab.data.batch import PairBatch, batches_of
from circuitlab.data.pairs import PairSet
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import Baseline, record_baseline
from circuitlab.patching.circuits import run_circuits
from circuitlab.patching.packing import fitting, packs, rows_per_pack
from circuitlab.progress import Progress, silent


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A data set with both runs recorded: judging another circuit costs the circuit and nothing else.

    Attributes:
        baselines: One per prompt length.
        n_examples: In all of them.
    """

    baselines: tuple[Baseline, ...]
    n_examples: int

    def gaps(self, metric: Metric) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]]:
        """The metric of the clean and the corrupted runs, in the order of the data set."""
        clean, corrupt = np.zeros(self.n_examples), np.zeros(self.n_examples)
        for baseline in self.baselines:
            where = baseline.batch.index.cpu().numpy()
            for target, values in zip((clean, corrupt), baseline.gap(metric), strict=True):
                target[where] = values.double().cpu().numpy()
        return clean, corrupt


def prepare(model: Model, pairs: PairSet | PairBatch, budget: int | None = None) -> Prepared:
    """Record both runs of every batch, in parts on which a circuit of all nodes fits the budget."""
    whole = batches_of(pairs, model.device)
    streams = 2 * len(Layout.of(model.spec).writers)
    parts = [part for batch in whole for part in fitting(model, batch, budget, streams)]
    return Prepared(tuple(record_baseline(model, batch) for batch in parts), sum(map(len, whole)))


@torch.no_grad()
def circuit_values(
    model: Model,
    prepared: Prepared,
    masks: Bool[np.ndarray, "circuit writer reader"],
    metrics: Sequence[Metric],
    *,
    budget: int | None = None,
    progress: Progress = silent,
    step: str = "circuits",
) -> dict[str, Float[np.ndarray, "circuit example"]]:
    """Every metric of every circuit on every example.

    Args:
        model: The model.
        prepared: The data set, recorded.
        masks: Kept edges of each circuit.
        metrics: What to measure; they share the runs.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
        step: What the progress is called.
    """
    out = {metric.name: np.zeros((len(masks), prepared.n_examples)) for metric in metrics}
    done, total = 0, len(masks) * len(prepared.baselines)
    edges = torch.tensor(masks, device=model.device)
    for baseline in prepared.baselines:
        batch = baseline.batch
        where = batch.index.cpu().numpy()
        # A circuit keeps its writers' differences: about as many streams as it has nodes.
        nodes = max(4, int(edges.any(2).sum(1).max()) if len(edges) else 4)
        rows = rows_per_pack(model, batch.n_tokens, budget, extra_streams=2 * nodes)
        for pack in packs(len(masks), max(1, rows // len(batch))):
            final = run_circuits(model, baseline, edges[pack])
            for offset, stream in enumerate(final):
                logits = model.logits(stream)
                for metric in metrics:
                    out[metric.name][pack.start + offset, where] = metric(logits, batch).double().cpu().numpy()
            done += pack.stop - pack.start
            progress(step, done, total)
    return out
