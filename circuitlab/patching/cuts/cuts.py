"""Run circuits from the clean run: what their cut edges change is added up, and only what it reaches is computed.

A reader's input is the clean stream at its place, what its cut edges replace, and how far the writers on its kept edges
are from the clean run:

    x_v = x_v(clean) + sum over cut u -> v of (r_u - a_u(clean)) + sum over kept u -> v of (a_u - a_u(clean))

The same circuit as in `circuits`, to the last rounding, from the other side: there a node without a kept edge into it
costs nothing, here one without a cut edge into it or before it. A search that cuts from the logits backwards (ACDC)
asks about readers whose whole past is clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.models.steps import heads_interact
from circuitlab.parts import Layout
from circuitlab.patching.circuits.circuits import CircuitRun
from circuitlab.patching.circuits.plan import Cut, Plan, plan_cuts
from circuitlab.patching.circuits.token_sets import TokenSets
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.floor import Floor, replaced_apart
from circuitlab.patching.runs.reach import tokens_that_differ


class Cuts:
    """One batch, ready to run circuits with few or many cut edges.

    Args:
        model: The model.
        baseline: The batch, run clean and corrupted.
        floor: The run with every edge replaced; the corrupted run by default.
    """

    def __init__(self, model: Model, baseline: Baseline, floor: Floor | None = None) -> None:
        self._model, self._baseline = model, baseline
        self._layout, batch = Layout.of(model.spec), baseline.batch
        self._clean = Floor(run=baseline.clean, offsets={})
        self._sets = TokenSets(*batch.clean.shape, causal=model.spec.causal)
        self._replaced = replaced_apart(model, baseline, floor).flatten(1, 2)
        apart = (self._replaced != 0).any(2).unflatten(1, batch.clean.shape)
        if floor is None or floor.run is baseline.corrupt:
            apart &= tokens_that_differ(model.spec, batch)
        self._where = {w: self._sets.of(there) for w, there in enumerate(apart.cpu().numpy()) if there.any()}
        answers = torch.arange(self._sets.seq, device=batch.answer_at.device) == batch.answer_at[:, None]
        self._answers = self._sets.of(answers.cpu().numpy())
        self._heads_interact = [heads_interact(model, layer) for layer in range(model.spec.n_layers)]
        # Memory that is new costs a CPU more than the sums that are written into it.
        self._room: Tensor | None = None
        # The sums of a search's finished readers serve all its later questions. They stand in a ring of places.
        self._ring = self._replaced.new_empty(0, *self._replaced.shape[1:])
        self._place = dict[Cut, int]()
        self._next = 0

    @torch.no_grad()
    def run(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[Tensor, "circuit batch d_model"]:
        """Final stream at the answer position with only the masked edges kept.

        Args:
            masks: Kept edges, by the numbers of `Layout`; entries that are no edge of the model are ignored.

        Returns:
            One final stream per circuit and example; the same as `run_circuits`.
        """
        kept = masks & (np.arange(masks.shape[1])[:, None] < np.array(self._layout.visible))
        plan = plan_cuts(
            self._layout,
            kept,
            self._sets,
            replaced=self._where,
            answers=self._answers,
            heads_interact=self._heads_interact,
        )
        run = CircuitRun(self._model, self._baseline, self._clean, plan, self._room)
        self._room = run.table.rows
        self._fill(run, plan)
        return run.finished()

    def _fill(self, run: CircuitRun, plan: Plan) -> None:
        """What the cut edges into each reader add up to."""
        cuts = plan.of(Cut)
        new = [cut for cut in dict.fromkeys(cuts.values()) if cut not in self._place]
        # First those that are there: the new ones may take their places.
        self._copy(run, plan, {number: cut for number, cut in cuts.items() if cut in self._place})
        if new:
            missing = set(new)
            self._add_up(new)
            self._copy(run, plan, {number: cut for number, cut in cuts.items() if cut in missing})

    def _copy(self, run: CircuitRun, plan: Plan, cuts: Mapping[int, Cut]) -> None:
        for number, cut in cuts.items():
            rows = run.table.of([number])
            tokens = torch.from_numpy(self._sets.indices(plan.tokens[number])).to(rows.device)
            torch.index_select(self._ring[self._place[cut]], 0, tokens, out=rows)

    def _add_up(self, new: Sequence[Cut]) -> None:
        """New sums in one product, in the next places of the ring."""
        if len(self._ring) < 2 * len(new) + len(self._layout.readers):
            self._ring = self._replaced.new_empty(4 * len(new) + len(self._layout.readers), *self._replaced.shape[1:])
            self._place.clear()
            self._next = 0
        start = self._next if self._next + len(new) <= len(self._ring) else 0
        self._next = end = start + len(new)
        self._place = {cut: place for cut, place in self._place.items() if not start <= place < end}
        chosen = self._replaced.new_zeros(len(new), len(self._replaced))
        for row, cut in enumerate(new):
            chosen[row, list(cut.writers)] = 1
        torch.mm(chosen, self._replaced.flatten(1), out=self._ring[start:end].flatten(1))
        self._place |= {cut: place for place, cut in enumerate(new, start)}
