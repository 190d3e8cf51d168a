"""Metrics of circuits on a data set: batches by length, circuits packed to the memory budget, one value per example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.data.batching import batches_for
from circuitlab.data.pairs import PairSet
from circuitlab.metrics import Metric
from circuitlab.metrics.checks import check_gradient, check_row_wise
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.ablation import floor_of
from circuitlab.patching.circuits.circuits import run_circuits
from circuitlab.patching.runs.baseline import Baseline, at_answer, record_baseline
from circuitlab.patching.runs.floor import Floor
from circuitlab.patching.runs.packing import fitting, packs, rows_per_pack
from circuitlab.patching.runs.replacement import Replacement, resolve_replacement
from circuitlab.progress import Progress, silent

# Tokens in one run from which more circuits at once bring nothing more. Measured on the bundled model, two threads: 20
# random circuits of 20 edges on 100 prompts of 8 tokens take 0.06 s in packs of this size, 0.19 s in a quarter of it
# and 0.33 s in packs of 1,024 tokens; of 200 edges 0.21, 0.27 and 0.54 s.
TOKENS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A data set with both runs recorded: judging another circuit costs the circuit and nothing else.

    Attributes:
        replacement: What excluded edges carry, resolved for this data set.
        baselines: One per prompt length.
        floors: For each of them, the run with every edge replaced.
        floor_logits: Next-token logits of the floors at the answer position.
        n_examples: In all of them.
    """

    replacement: Replacement
    baselines: tuple[Baseline, ...]
    floors: tuple[Floor, ...]
    floor_logits: tuple[Float[Tensor, "_ d_vocab"], ...]
    n_examples: int

    def gaps(self, metric: Metric) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]]:
        """The metric of the clean runs and of the empty circuit, in the order of the data set.

        The empty circuit is the corrupted run, unless excluded edges carry something else.

        Raises:
            MetricError: The metric of an example depends on the other examples (`circuitlab.metrics.checks`).
        """
        check_row_wise(metric, self.baselines[0].clean_logits, self.baselines[0].batch)
        clean = self._in_order(metric, [baseline.clean_logits for baseline in self.baselines])
        return clean, self._in_order(metric, self.floor_logits)

    def corrupted(self, metric: Metric) -> Float[np.ndarray, " example"]:
        """The metric of the corrupted runs, in the order of the data set."""
        return self._in_order(metric, [b.corrupt_logits for b in self.baselines])

    def check_gradient(self, metric: Metric, shares: Sequence[float], method: str) -> None:
        """Refuse a metric without a gradient where a method takes it; nothing is asked where `shares` is empty.

        Raises:
            MetricError: It has none on the first batch.
        """
        first = self.baselines[0]
        if shares:
            check_gradient(metric, first.clean_logits, first.corrupt_logits, first.batch, shares, method)

    @property
    def empty_is(self) -> str:
        """Where the second of the `gaps` is measured, in words."""
        kind = self.replacement.kind
        return "on the corrupted prompts" if kind == "corrupt" else f"in the empty circuit (ablation {kind!r})"

    def _in_order(self, metric: Metric, logits: Sequence[Tensor]) -> Float[np.ndarray, " example"]:
        found = np.zeros(self.n_examples)
        for baseline, at_end in zip(self.baselines, logits, strict=True):
            found[baseline.batch.index.cpu().numpy()] = metric(at_end, baseline.batch).double().cpu().numpy()
        return found


def prepare(
    model: Model,
    pairs: PairSet | PairBatch,
    budget: int | None = None,
    *,
    replacement: str | Replacement = "corrupt",
    reference: PairSet | PairBatch | None = None,
    seed: int = 0,
    extra_streams: int = 0,
) -> Prepared:
    """Record both runs of every batch, in parts on which a circuit of all nodes fits the budget.

    Args:
        model: The model.
        pairs: The data set.
        budget: Bytes that a packed run may take.
        replacement: What excluded edges carry; a name of `REPLACEMENTS` or a `Replacement`.
        reference: Prompts that means are taken of, none of them in the data set.
        seed: Of noise.
        extra_streams: How many more tensors of the stream's size the caller keeps for every prompt.

    Raises:
        UnknownNameError: No such replacement.
        ConfigError: What `resolve_replacement` refuses; a budget that holds no prompt.
    """
    resolved = resolve_replacement(model, replacement, pairs=pairs, reference=reference, seed=seed, budget=budget)
    whole = batches_for(model, pairs)
    streams = 2 * len(Layout.of(model.spec).writers) + extra_streams
    parts = [part for batch in whole for part in fitting(model, batch, budget, streams)]
    baselines = tuple(record_baseline(model, batch) for batch in parts)
    floors = tuple(floor_of(model, baseline, resolved) for baseline in baselines)
    return Prepared(
        replacement=resolved,
        baselines=baselines,
        floors=floors,
        floor_logits=tuple(_logits(model, b, floor) for b, floor in zip(baselines, floors, strict=True)),
        n_examples=sum(map(len, whole)),
    )


@torch.no_grad()
def _logits(model: Model, baseline: Baseline, floor: Floor) -> Float[Tensor, "batch d_vocab"]:
    if floor.run is baseline.corrupt:
        return baseline.corrupt_logits
    return model.logits(at_answer(floor.run.resid_final, baseline.batch.answer_at))


@torch.no_grad()
def circuit_values(
    model: Model,
    prepared: Prepared,
    masks: Bool[np.ndarray, "circuit writer reader"],
    metrics: Sequence[Metric],
    *,
    neurons: Bool[np.ndarray, "writer d_model"] | None = None,
    budget: int | None = None,
    progress: Progress = silent,
    step: str = "circuits",
) -> dict[str, Float[np.ndarray, "circuit example"]]:
    """Every metric of every circuit on every example.

    Args:
        model: The model.
        prepared: The data set, recorded.
        masks: Kept edges of each circuit; excluded ones carry what the data set was prepared with.
        metrics: What to measure; they share the runs.
        neurons: Which components of a writer's output kept edges carry; all by default.
        budget: Bytes that a packed run may take.
        progress: Called with (step, done, total).
        step: What the progress is called.
    """
    out = {metric.name: np.zeros((len(masks), prepared.n_examples)) for metric in metrics}
    done, total = 0, len(masks) * len(prepared.baselines)
    edges = torch.tensor(masks, device=model.device)
    carried = None if neurons is None else torch.tensor(neurons, device=model.device)
    for baseline, floor in zip(prepared.baselines, prepared.floors, strict=True):
        batch = baseline.batch
        where = batch.index.cpu().numpy()
        for pack in _alike(masks, _together(model, batch, masks, budget)):
            final = run_circuits(model, baseline, edges[pack], floor, carried)
            for circuit, stream in zip(pack, final, strict=True):
                logits = model.logits(stream)
                for metric in metrics:
                    out[metric.name][circuit, where] = metric(logits, batch).double().cpu().numpy()
            done += len(pack)
            progress(step, done, total)
    return out


def _together(
    model: Model, batch: PairBatch, masks: Bool[np.ndarray, "circuit writer reader"], budget: int | None
) -> int:
    """How many circuits to run as one batch: as few as make full-sized products, and no more than fit."""
    # A circuit keeps its writers' differences: about as many streams as it has nodes.
    nodes = max(4, int(masks.any(2).sum(1).max(initial=4)))
    fit = rows_per_pack(model, batch.n_tokens, budget, extra_streams=2 * nodes) // len(batch)
    return max(1, min(fit, TOKENS_AT_ONCE // (len(batch) * batch.n_tokens)))


def _alike(masks: Bool[np.ndarray, "circuit writer reader"], size: int) -> Iterator[list[int]]:
    """Circuits in packs of similar size: a pack computes the nodes of all its circuits for each of them."""
    order = np.argsort(masks.sum((1, 2)), kind="stable").tolist()
    for pack in packs(len(order), size):
        yield order[pack]
