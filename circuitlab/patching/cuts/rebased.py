"""Circuits of a search that cuts edge after edge, each run from one that was run before.

A call's circuits are run from the last `CutState`: the one that was begun with, or where nobody began another and more
readers share cuts than a layer has readers, the circuit of these cuts. A state is run from the one before, where that
keeps all of its edges: a search has about one a layer, so that little rounding piles up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout, Slot
from circuitlab.patching.cuts.attention import SLOTS
from circuitlab.patching.cuts.run import CutRun
from circuitlab.patching.cuts.setting import Places, Setting, sees
from circuitlab.patching.cuts.slopes import CutSlopes
from circuitlab.patching.cuts.state import CutState, clean_state
from circuitlab.patching.cuts.sums import Sums
from circuitlab.patching.cuts.variants import SAME
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.floor import Floor, replaced_apart
from circuitlab.patching.runs.reach import tokens_that_differ


class RebasedCuts:
    """One batch, ready to run circuits that cut ever more edges.

    Args:
        model: The model; no norm stands behind its heads.
        baseline: The batch, run clean and corrupted.
        floor: The run with every edge replaced; the corrupted run by default.
    """

    def __init__(self, model: Model, baseline: Baseline, floor: Floor | None = None) -> None:
        batch, replaced = baseline.batch, replaced_apart(model, baseline, floor)
        apart = (replaced != 0).any(3)
        if floor is None or floor.run is baseline.corrupt:
            apart &= tokens_that_differ(model.spec, batch)
        there = torch.nonzero(apart.any(0).any(0)) if model.spec.causal else torch.zeros(1, 1)
        since = min(int(there[0]) if len(there) else batch.n_tokens, int(batch.answer_at.min()))
        layout = Layout.of(model.spec)
        self._real, self._readers_per_layer = real_edges(layout), model.spec.readers_per_layer
        self._setting = Setting(
            model=model,
            layout=layout,
            places=Places.of(layout),
            arguments=baseline.arguments,
            replaced=replaced[:, :, since:].contiguous(),
            differs=apart.flatten(1).any(1).cpu().numpy(),
            since=since,
            answer_at=batch.answer_at,
            sees=sees(batch, since),
            room={},
        )
        self._clean = self._state = clean_state(model, baseline, self._real, since)
        self._batch = batch
        self._slopes: CutSlopes | None = None

    @torch.no_grad()
    def begin(self, mask: Bool[np.ndarray, "writer reader"]) -> None:
        """Run this circuit, to run others from it that keep no other edges."""
        kept = mask & self._real
        if (kept & ~self._state.mask).any():
            self._state = self._clean
        if (kept != self._state.mask).any():
            self._state = state_of(self._setting, self._state, kept)

    def worth(self, metric: Metric, layer: int) -> tuple[list[int], Float[Tensor, "writer reader"]]:
        """What cutting edges changes in the circuit that others are run from, to first order; see `CutSlopes.worth`."""
        if self._slopes is None or not self._slopes.goes_on_to(metric, layer):
            self._slopes = CutSlopes(self._setting, self._state, metric, self._batch)
        return self._slopes.worth(self._state, layer)

    @torch.no_grad()
    def run(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[Tensor, "circuit batch d_model"]:
        """Final stream at the answer position with only the masked edges kept.

        Args:
            masks: Kept edges, by the numbers of `Layout`; entries that are no edge of the model are ignored.

        Returns:
            One final stream per circuit and example; the same as `run_circuits`.
        """
        kept = masks & self._real
        common = np.asarray(kept.any(0))
        another_search = (common & ~self._state.mask).any()
        if another_search or (common != self._state.mask).any(0).sum() > self._readers_per_layer:
            self.begin(common)
        return CutRun(Sums(self._setting, self._state, kept)).finished()


def state_of(setting: Setting, before: CutState, mask: Bool[np.ndarray, "writer reader"]) -> CutState:
    """Run one circuit from another that keeps all of its edges, to run others from it."""
    run = CutRun(Sums(setting, before, mask[None], everywhere=True))
    final = run.finished()
    assert run.streams is not None
    streams = list(before.streams)
    for column, found in run.streams.items():
        streams[column] = found.values[0]
    streams[-1] = final[0][:, None]
    slots = [list(parts) for parts in before.slots]
    for layer, slot, head in run.heads.slots:
        if slots[layer][slot] is before.slots[layer][slot]:
            slots[layer][slot] = slots[layer][slot].clone()
        slots[layer][slot][:, setting.since :, head] = run.heads.slots[layer, slot, head].values[0]
    z = list(before.z)
    for layer, head in run.heads.z:
        if z[layer] is before.z[layer]:
            z[layer] = z[layer].clone()
        z[layer][:, :, head] = run.heads.z[layer, head].values[0]
    apart = dict(before.apart)
    for writer, found in run.sums.said.items():
        apart[writer] = found.values[0] + apart[writer] if writer in apart else found.values[0].clone()
    mlps = list(before.mlps)
    for layer in range(len(mlps)):
        writer = run.sums.places.mlps[layer][0] if run.sums.places.mlps else SAME
        if writer in run.sums.said:
            mlps[layer] = mlps[layer] + run.sums.said[writer].values[0]
    moved = {layer for layer, slot, _ in run.heads.slots if slot != SLOTS.index(Slot.V)}
    return replace(
        before,
        mask=mask,
        streams=tuple(streams),
        slots=tuple(map(tuple, slots)),
        z=tuple(z),
        mlps=tuple(mlps),
        apart=apart,
        patterns={layer: pattern for layer, pattern in before.patterns.items() if layer not in moved},
        kept={},
    )
