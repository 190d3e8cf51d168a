"""Circuits of a search, each run from one that was run before."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import Baseline
from circuitlab.patching.cut_run import CutRun, Setting, state_of
from circuitlab.patching.cut_state import clean_state
from circuitlab.patching.cuts import replaced_apart
from circuitlab.patching.floor import Floor

# Readers whose new cuts all circuits of a call share, from which these circuits get a new one to be run from.
READERS = 4


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
            # Both prompts are the same before their first difference, whatever the last bits of their kernels say.
            apart &= (batch.clean != batch.corrupt).cumsum(1) > 0
        there = torch.nonzero(apart.any(0).any(0))
        since = min(int(there[0]) if len(there) else batch.n_tokens, int(batch.answer_at.min()))
        self._real = real_edges(Layout.of(model.spec))
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
        common = kept.any(0)
        behind = (common & ~self._state.mask).any()
        if behind or (common != self._state.mask).any(0).sum() >= READERS:
            self._state = state_of(self._setting, self._clean, common)
        return CutRun(self._setting, self._state, kept).finished()
