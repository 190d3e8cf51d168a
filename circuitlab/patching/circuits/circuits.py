"""Run circuits: kept edges carry their writer's output in this run, all others a fixed replacement.

A reader's input is its stream in the ablated run, where every edge carries its replacement r_u, plus, for every kept
edge, the difference of its writer's output to that:

    x_v = (bias part + sum over all u of r_u) + sum over kept u -> v of (a_u - r_u)

so that a writer which changed itself passes its changed value on. A node without a kept edge into it is as in the
ablated run and is not computed: the cost follows the nodes of the circuit, and the tokens at which each can differ and
is needed (`plan`). Several circuits are run as one batch and share what they have in common.
(EAP-IG's `evaluate`, auto-circuit's patch masks and TransformerLens's ablation of edges compute the same.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.errors import ConfigError
from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.models.steps import heads_interact, mlp_input
from circuitlab.parts import Layout
from circuitlab.patching.circuits.clean_start import CleanStart
from circuitlab.patching.circuits.heads import Heads
from circuitlab.patching.circuits.plan import ComputedWriter, Plan, UnchangedWriter, WriterChange, plan_circuits
from circuitlab.patching.circuits.rows import Table, grouped
from circuitlab.patching.circuits.token_sets import TokenSets
from circuitlab.patching.runs.ablation import AblatedRun
from circuitlab.patching.runs.baseline import Baseline, at_answer

# Rows that go through an MLP together: their hidden layer stays nearer to the caches.
MLP_ROWS = 2048


@torch.no_grad()
def run_circuits(
    model: Model,
    baseline: Baseline,
    masks: Bool[Tensor, "circuit writer reader"],
    ablated: AblatedRun | None = None,
    neurons: Bool[Tensor, "writer d_model"] | None = None,
    *,
    start: Literal["empty", "clean"] = "empty",
) -> Float[Tensor, "circuit batch d_model"]:
    """Final stream at the answer position with only the masked edges kept.

    Args:
        model: The model.
        baseline: One batch, run clean and corrupted.
        masks: Kept edges, by the numbers of `Layout`; entries that are no edge of the model are ignored.
        ablated: The run with every edge replaced; the corrupted run by default.
        neurons: Which components of a writer's output its kept edges carry; the others stay at their replacement, and
            all are carried by default.
        start: Where the run begins, which changes its cost and not its result: with the circuit without edges, where
            nodes without a kept edge into them cost nothing, or with the clean run, where nodes upstream of every cut
            edge do. The clean run carries all components of a writer's output.

    Returns:
        One final stream per circuit and example. All edges kept: the clean run; none: the ablated run.

    Raises:
        ConfigError: Neurons are given and the run begins with the clean run.
    """
    if start == "clean":
        if neurons is not None:
            raise ConfigError("start='clean' takes no neurons=; run circuits of neurons with start='empty'.")
        return CleanStart(model, baseline, ablated).run(masks.cpu().numpy())
    ablated = AblatedRun.corrupted(baseline) if ablated is None else ablated
    return _Run(model, baseline, ablated, _plan(model, baseline, masks, ablated), neurons).finished()


def _plan(model: Model, baseline: Baseline, masks: Bool[Tensor, "circuit writer reader"], ablated: AblatedRun) -> Plan:
    """What `run_circuits` computes, in which order and at which tokens."""
    layout, batch = Layout.of(model.spec), baseline.batch
    sets = TokenSets(*batch.clean.shape, causal=model.spec.causal)
    kept = masks.cpu().numpy() & real_edges(layout)
    entering = (baseline.clean.resid_pre[0] != ablated.run.resid_pre[0]).any(2)
    answers = torch.arange(sets.seq, device=batch.answer_at.device) == batch.answer_at[:, None]
    return plan_circuits(
        layout,
        kept,
        sets,
        entering=sets.of(entering.cpu().numpy()),
        answers=sets.of(answers.cpu().numpy()),
        # To compare an offset with 0 takes a stream, so that it counts as different everywhere.
        offsets={w: sets.all for w in np.flatnonzero(kept.any((0, 2))).tolist() if w > 0 and w in ablated.offsets},
        heads_interact=[heads_interact(model, layer) for layer in range(model.spec.n_layers)],
    )


class _Run:
    """A plan on its way; `neurons` as of `run_circuits`."""

    def __init__(
        self,
        model: Model,
        baseline: Baseline,
        ablated: AblatedRun,
        plan: Plan,
        neurons: Bool[Tensor, "writer d_model"] | None,
    ) -> None:
        self.model, self.baseline, self.ablated, self.plan, self.neurons = model, baseline, ablated, plan, neurons
        self.table = Table(plan, baseline.clean.resid_pre[0])
        self.heads = Heads(model, baseline.arguments, ablated.run, plan, self.table)

    def finished(self) -> Float[Tensor, "circuit batch d_model"]:
        """Take all steps; what the logits read, at the answer position."""
        self._start()
        for layer in range(self.model.spec.n_layers):
            for changes, difference in self.heads.changes(layer):
                self._add(changes, difference)
            if self.model.spec.has_mlp:
                self._add_mlps(layer)
        return self._final()

    def _start(self) -> None:
        """Outputs of the input, and of writers whose input is unchanged and whose output is not their replacement."""
        plan = self.plan
        unchanged = {number: step.writer for number, step in plan.of(UnchangedWriter).items()}
        # A version that is needed only where its input is as in the ablated run: only its offset remains.
        unchanged |= {
            number: step.writer
            for number, step in plan.of(ComputedWriter).items()
            if not plan.tokens[number] & plan.tokens[step.made_of]
        }
        for number, writer in unchanged.items():
            self.table.of([number])[:] = self._offset(writer, self._members([plan.tokens[number]]))

    def _add_mlps(self, layer: int) -> None:
        """Add the differences of the versions of an MLP, so many rows at once as stay in the caches between steps."""
        changes = self.plan.made(self.plan.mlps[layer])
        groups = list(grouped(changes, lambda one: self.plan.sets.count(one.tokens), MLP_ROWS))
        wanted = [[(one.made_of, one.tokens) for one in group] for group in groups]
        reads = self.table.sums(wanted, mlp_input(self.model, self.ablated.run, layer)) if groups else ()
        recorded = self.ablated.run.mlp_out[layer].flatten(0, 1)
        for group, read in zip(groups, reads, strict=True):
            was = recorded.index_select(0, self._members(one.tokens for one in group))
            self._add(group, self.model.mlp_output(layer, read).sub_(was))

    def _final(self) -> Float[Tensor, "circuit batch d_model"]:
        """The stream that the logits read, at the answer position."""
        plan, run = self.plan, self.ablated.run
        out = at_answer(run.resid_final, self.baseline.batch.answer_at).repeat(len(plan.final), 1, 1)
        changed = [number for number in dict.fromkeys(plan.final) if plan.tokens[number]]
        if changed:
            (read,) = self.table.sums([[(number, plan.tokens[number]) for number in changed]], run.resid_final)
            sizes = [plan.sets.count(plan.tokens[number]) for number in changed]
            streams = dict(zip(changed, read.split(sizes), strict=True))
            for circuit, number in enumerate(plan.final):
                if number in streams:
                    out[circuit, self._members([plan.tokens[number]]) // plan.sets.seq] = streams[number]
        return out

    def _add(self, changes: Sequence[WriterChange], difference: Float[Tensor, "token d_model"]) -> None:
        """Keep the differences of versions of one writer to the ablated run, on top of the writer's offset."""
        numbers, writer = [one.number for one in changes], changes[0].writer
        difference = self._carried(writer, difference)
        if writer not in self.ablated.offsets:
            self.table.of(numbers)[:] = difference
            return
        # Between their rows there may be those of versions that are not computed.
        rows = np.concatenate([self.table.at(number) for number in numbers])
        tokens = self._members(self.plan.tokens[number] for number in numbers)
        self.table.rows[self._index(rows)] = self._offset(writer, tokens)
        changed = np.concatenate([self.table.at(one.number, one.tokens) for one in changes])
        self.table.rows.index_add_(0, self._index(changed), difference)

    def _carried(self, writer: int, difference: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What kept edges carry of a difference to the replacement: the neurons that are kept."""
        return difference if self.neurons is None else difference * self.neurons[writer]

    def _offset(self, writer: int, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """What kept edges carry of a writer's difference to its replacement where its input is unchanged."""
        if writer == 0:
            difference = self.baseline.clean.resid_pre[0] - self.ablated.run.resid_pre[0]
        else:
            difference = self.ablated.offsets[writer]
        return self._carried(writer, difference.flatten(0, 1)[tokens])

    def _members(self, sets: Iterable[int]) -> Int[Tensor, " token"]:
        return self._index(np.concatenate([self.plan.sets.indices(tokens) for tokens in sets]))

    def _index(self, index: Int[np.ndarray, " token"]) -> Int[Tensor, " token"]:
        return torch.from_numpy(index).to(self.ablated.run.resid_final.device)
