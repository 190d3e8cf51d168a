"""A metric of circuits that are run from the clean run, on a whole data set: for searches that cut edge after edge."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float

from circuitlab.data.batch import PairBatch
from circuitlab.data.pairs import PairSet
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.circuits.metric import Prepared, prepare
from circuitlab.patching.cuts.cuts import Cuts
from circuitlab.patching.cuts.rebased import RebasedCuts
from circuitlab.patching.runs.baseline import judge
from circuitlab.patching.runs.packing import packs, rows_per_pack
from circuitlab.patching.runs.replacement import Replacement

# Tokens in one run of several circuits. Measured on the 4-layer model of the benchmark, two threads: ACDC takes 2.3 s
# with 16 circuits of 64 x 16 tokens in a run or with 24, 3.4 s with 8 and 4.7 s with 4.
TOKENS_AT_ONCE = 16384


class CutValues:
    """A data set with both runs recorded, ready to judge circuits that differ from the whole model by cut edges.

    Args:
        model: The model.
        pairs: The data set; every batch of it counts.
        metric: What is measured.
        ablation: What cut edges carry.
        reference: Prompts that means are taken of, none of them in the data set.
        seed: Of noise.
        budget: Bytes that a packed run may take.

    Raises:
        UnknownNameError: No such ablation.
        ConfigError: What `prepare` refuses.
    """

    def __init__(
        self,
        model: Model,
        pairs: PairSet | PairBatch,
        metric: Metric,
        *,
        ablation: str | Replacement = "corrupt",
        reference: PairSet | PairBatch | None = None,
        seed: int = 0,
        budget: int | None = None,
    ) -> None:
        self._model, self.metric, self._budget = model, metric, budget
        layout = Layout.of(model.spec)
        # What replaces every writer, and what the cut edges into every reader add up to.
        streams = 2 * len(layout.writers) + len(layout.readers)
        self.prepared: Prepared = prepare(
            model, pairs, budget, replacement=ablation, reference=reference, seed=seed, extra_streams=streams
        )
        coupled = any(model.has_post_norm(layer) for layer in range(model.spec.n_layers))
        ready = Cuts if coupled else RebasedCuts
        self._cuts = [ready(model, b, f) for b, f in zip(self.prepared.baselines, self.prepared.floors, strict=True)]

    @property
    def at_once(self) -> int:
        """How many circuits one call runs together on the largest batch."""
        return min(self._size(baseline.batch) for baseline in self.prepared.baselines)

    def of(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[np.ndarray, "circuit example"]:
        """The metric of every circuit on every example, in the order of the data set."""
        out = np.zeros((len(masks), self.prepared.n_examples))
        for baseline, cuts in zip(self.prepared.baselines, self._cuts, strict=True):
            where = baseline.batch.index.cpu().numpy()
            example = torch.arange(len(where), device=self._model.device)
            for part in packs(len(masks), self._size(baseline.batch)):
                final = cuts.run(masks[part])
                rows = example.repeat(len(final))
                values = judge(self._model, self.metric, baseline, final.flatten(0, 1), rows)
                out[part, where] = values.double().unflatten(0, (len(final), -1)).cpu().numpy()
        return out

    def _size(self, batch: PairBatch) -> int:
        n_nodes = len(Layout.of(self._model.spec).nodes)
        fit = rows_per_pack(self._model, batch.n_tokens, self._budget, extra_streams=2 * n_nodes) // len(batch)
        return max(1, min(fit, TOKENS_AT_ONCE // (len(batch) * batch.n_tokens)))
