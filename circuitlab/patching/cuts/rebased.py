"""Circuits of a search that cuts edge after edge, each run from one that was run before.

A call's circuits are run from the last `CutState`. Cuts that all of them share pile up on top of it; when more readers
have some than a layer has readers, the circuit of these cuts is run from the clean run and becomes the state that
others are run from. It is never made of another state, so that rounding does not pile up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.cuts.run import CutRun
from circuitlab.patching.cuts.setting import Setting
from circuitlab.patching.cuts.state import CutState, clean_state
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
        self._real, self._readers_per_layer = real_edges(Layout.of(model.spec)), model.spec.readers_per_layer
        self._setting = Setting(
            model=model,
            frame=baseline.frame,
            replaced=replaced[:, :, since:].contiguous(),
            differs=apart.flatten(1).any(1).cpu().numpy(),
            since=since,
            answer_at=batch.answer_at,
            room={},
        )
        self._clean = self._state = clean_state(model, baseline, self._real, since)

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
            self._state = state_of(self._setting, self._clean, common)
        return CutRun(self._setting, self._state, kept).finished()


def state_of(setting: Setting, clean: CutState, mask: Bool[np.ndarray, "writer reader"]) -> CutState:
    """Run one circuit from the clean run, to run others from it."""
    run = CutRun(setting, clean, mask[None], everywhere=True)
    final = run.finished()
    assert run.streams is not None
    streams = list(clean.streams)
    for column, found in run.streams.items():
        streams[column] = found.values[0]
    streams[-1] = final[0][:, None]
    slots = [[part.clone() for part in parts] for parts in clean.slots]
    for (layer, slot, head), found in run.slots.items():
        slots[layer][slot][:, setting.since :, head] = found.values[0]
    z = [part.clone() for part in clean.z]
    for (layer, head), found in run.z.items():
        z[layer][:, :, head] = found.values[0]
    apart = {writer: found.values[0].clone() for writer, found in run.said.items()}
    mlps = list(clean.mlps)
    for layer in range(len(mlps)):
        writer = run.places.mlps[layer][0] if run.places.mlps else SAME
        if writer in apart:
            mlps[layer] = clean.mlps[layer] + apart[writer]
    return replace(
        clean,
        mask=mask,
        streams=tuple(streams),
        slots=tuple(map(tuple, slots)),
        z=tuple(z),
        mlps=tuple(mlps),
        apart=apart,
    )
