"""Run circuits from the clean run: what their cut edges change is added up, and only what it reaches is computed.

A reader's input is the clean stream at its place, what its cut edges replace, and how far the writers on its kept edges
are from the clean run:

    x_v = x_v(clean) + sum over cut u -> v of (r_u - a_u(clean)) + sum over kept u -> v of (a_u - a_u(clean))

The same circuit as in `circuits`, to the last rounding, from the other side: there a node without a kept edge into it
costs nothing, here one without a cut edge into it or before it. A search that cuts from the logits backwards (ACDC)
asks about readers whose whole past is clean.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.parts import Layout
from circuitlab.patching.baseline import Baseline
from circuitlab.patching.circuit_plan import Cut, Plan, plan_cuts
from circuitlab.patching.circuits import CircuitRun
from circuitlab.patching.floor import Floor
from circuitlab.patching.token_sets import TokenSets
from circuitlab.patching.writers import writer_differences, writer_outputs


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
        self._sets = TokenSets(*batch.clean.shape)
        self._replaced = replaced_apart(model, baseline, floor).flatten(1, 2)
        apart = (self._replaced != 0).any(2).unflatten(1, batch.clean.shape)
        if floor is None or floor.run is baseline.corrupt:
            # Both prompts are the same before their first difference, whatever the last bits of their kernels say.
            apart &= (batch.clean != batch.corrupt).cumsum(1) > 0
        self._where = {w: self._sets.of(there) for w, there in enumerate(apart.cpu().numpy()) if there.any()}
        answers = torch.arange(self._sets.seq, device=batch.answer_at.device) == batch.answer_at[:, None]
        self._answers = self._sets.of(answers.cpu().numpy())
        self._coupled = [model.has_post_norm(layer) for layer in range(model.spec.n_layers)]
        # Memory that is new costs a CPU more than the sums that are written into it.
        self._room: Tensor | None = None
        # The sums of a search's finished readers serve all its later questions.
        self._sums = OrderedDict[Cut, Tensor]()

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
            self._layout, kept, self._sets, replaced=self._where, answers=self._answers, coupled=self._coupled
        )
        run = CircuitRun(self._model, self._baseline, self._clean, plan, self._room)
        self._room = run.table.rows
        self._fill(run, plan)
        return run.finished()

    def _fill(self, run: CircuitRun, plan: Plan) -> None:
        """What the cut edges into each reader add up to."""
        cuts = plan.of(Cut)
        self._add_up(list(dict.fromkeys(cuts.values())))
        for number, cut in cuts.items():
            rows = run.table.of([number])
            tokens = torch.from_numpy(self._sets.indices(plan.tokens[number])).to(rows.device)
            torch.index_select(self._sums[cut], 0, tokens, out=rows)
        while len(self._sums) > len(self._layout.readers):
            self._sums.popitem(last=False)

    def _add_up(self, cuts: list[Cut]) -> None:
        """Sums that are not there yet, in one product; those that are asked for again move to the end."""
        new = [cut for cut in cuts if cut not in self._sums]
        for cut in cuts:
            if cut in self._sums:
                self._sums.move_to_end(cut)
        if not new:
            return
        chosen = self._replaced.new_zeros(len(new), len(self._replaced))
        for row, cut in enumerate(new):
            chosen[row, list(cut.writers)] = 1
        sums = (chosen @ self._replaced.flatten(1)).unflatten(1, self._replaced.shape[1:])
        self._sums.update(zip(new, sums, strict=True))


@torch.no_grad()
def replaced_apart(
    model: Model, baseline: Baseline, floor: Floor | None = None
) -> Float[Tensor, "writer batch seq d_model"]:
    """How far what replaces each writer is from what it says in the clean run."""
    if floor is None or floor.run is baseline.corrupt:
        return -writer_differences(model, baseline)
    apart = writer_outputs(model, floor.run) - writer_outputs(model, baseline.clean)
    for writer in range(1, len(apart)):
        if writer in floor.offsets:
            apart[writer] -= floor.offsets[writer]
    return apart
