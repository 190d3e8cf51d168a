"""Run circuits: kept edges carry what their writer says now, all others what it says in the corrupted run.

A reader's input is the corrupted stream plus, for every kept edge, how far its writer is now from its corrupted output:

    x_v = x'_v + sum over kept u -> v of (a_u - a'_u)

so that a writer which changed itself passes its changed value on. A node without a kept edge into it is what it was in
the corrupted run and is not computed: the cost follows the nodes of the circuit. Several circuits are run as one batch.
(EAP-IG's `evaluate`, auto-circuit's patch masks and TransformerLens's ablation of edges compute the same.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.baseline import Baseline, at_answer
from circuitlab.patching.writers import mlp_input


@torch.no_grad()
def run_circuits(
    model: Model, baseline: Baseline, masks: Bool[Tensor, "circuit writer reader"]
) -> Float[Tensor, "circuit batch d_model"]:
    """Final stream at the answer position with only the masked edges kept.

    Args:
        model: The model.
        baseline: One batch, run clean and corrupted.
        masks: Kept edges, by the numbers of `Layout`; entries that are no edge of the model are ignored.

    Returns:
        One final stream per circuit and example. All edges kept: the clean run; none: the corrupted run.
    """
    run = _Run(model, baseline, masks)
    run.add(0, baseline.clean.resid_pre[0] - baseline.corrupt.resid_pre[0])
    for layer in range(model.spec.n_layers):
        if model.spec.parallel:
            heads, mlp = run.heads(layer), run.mlp(layer)
            run.extend(heads, mlp)
        else:
            run.extend(run.heads(layer), {})
            run.extend({}, run.mlp(layer))
    return run.final()


@dataclass(frozen=True, slots=True)
class _Active:
    """Readers of a layer that have a kept edge from a writer that differs from its corrupted self."""

    heads: tuple[int, ...]
    columns: tuple[int, ...]


class _Run:
    """One pass through the layers: which writers differ from the corrupted run so far, and by how much."""

    def __init__(self, model: Model, baseline: Baseline, masks: Bool[Tensor, "circuit writer reader"]) -> None:
        self.model, self.baseline = model, baseline
        self.layout = Layout.of(model.spec)
        visible = torch.tensor(self.layout.visible, device=masks.device)
        real = torch.arange(masks.shape[1], device=masks.device)[:, None] < visible
        self.masks = (masks & real).to(baseline.clean.resid_final.device)
        self.read_by_any = self.masks.any(0)
        self.listened_to = self.masks.any(2).any(0).tolist()
        self.n_circuits, self.n_examples = len(masks), len(baseline.batch)
        self.writers: list[int] = []
        # Filled from the front; a reader's input is then one matrix product [reader, writer] x [writer, all the rest].
        shape = (self.n_circuits, sum(self.listened_to), *baseline.clean.resid_final.shape)
        self.deltas: Float[Tensor, "circuit writer batch seq d_model"] = baseline.clean.resid_final.new_empty(shape)

    def add(self, writer: int, delta: Float[Tensor, "*circuit batch seq d_model"]) -> None:
        """A writer that differs from its corrupted output, if anybody listens."""
        if self.listened_to[writer]:
            self.deltas[:, len(self.writers)] = delta
            self.writers.append(writer)

    def extend(self, *found: dict[int, Tensor]) -> None:
        """Several of them, in the order of the layout."""
        for part in found:
            for writer, delta in sorted(part.items()):
                self.add(writer, delta)

    def stream(
        self, base: Float[Tensor, "batch seq d_model"], columns: Sequence[int]
    ) -> Float[Tensor, "reader circuit batch seq d_model"]:
        """What these readers read."""
        weights = self.masks[:, self.writers][:, :, list(columns)].to(base.dtype)
        changed = torch.bmm(weights.transpose(1, 2), self.deltas[:, : len(self.writers)].flatten(2))
        return changed.unflatten(2, base.shape).transpose(0, 1) + base

    def active(self, columns: Sequence[int]) -> list[int]:
        """Those of the readers that have a kept edge from a writer that differs."""
        if not self.writers:
            return []
        heard = self.read_by_any[self.writers][:, list(columns)].any(0).tolist()
        return [column for column, hears in zip(columns, heard, strict=True) if hears]

    def heads(self, layer: int) -> dict[int, Tensor]:
        """How far each head of the circuit is from its corrupted output."""
        model, corrupt, n_heads = self.model, self.baseline.corrupt, self.model.spec.n_heads
        # A norm behind the heads has one scale for all: a head that nobody listens to still moves the others' share,
        # and where one head changes, every head's share does.
        coupled = model.has_post_norm(layer)
        values, touched = dict[Slot, Tensor](), set[int]()
        for slot, own in ((Slot.Q, corrupt.q), (Slot.K, corrupt.k), (Slot.V, corrupt.v)):
            columns = [self.layout.reader_index(Reader(Node(Kind.HEAD, layer, h), slot)) for h in range(n_heads)]
            heads = [columns.index(column) for column in self.active(columns)]
            heads = [h for h in heads if coupled or self.listened_to[self._head_writer(layer, h)]]
            base = own[layer].expand(self.n_circuits, *own[layer].shape).flatten(0, 1)
            if heads:
                read = self.stream(corrupt.resid_pre[layer], [columns[h] for h in heads]).flatten(1, 2)
                base = base.clone()
                base[:, :, heads] = model.project(layer, slot, heads, read).permute(1, 2, 0, 3)
            values[slot] = base
            touched.update(heads)
        if not touched:
            return {}
        if coupled:
            touched = {h for h in range(n_heads) if self.listened_to[self._head_writer(layer, h)]}
        chosen = sorted(touched)
        z = model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], self.baseline.frame)
        now = model.head_outputs(layer, z, chosen).unflatten(1, (self.n_circuits, self.n_examples))
        deltas = now - model.head_outputs(layer, corrupt.z[layer], chosen)[:, None]
        return {self._head_writer(layer, h): delta for h, delta in zip(chosen, deltas, strict=True)}

    def mlp(self, layer: int) -> dict[int, Tensor]:
        """How far the layer's MLP is from its corrupted output, if it is in a circuit."""
        if not self.model.spec.has_mlp:
            return {}
        node = Node(Kind.MLP, layer)
        writer, column = self.layout.writer_index(node), self.layout.reader_index(Reader(node))
        if not self.listened_to[writer] or not self.active([column]):
            return {}
        read = self.stream(mlp_input(self.model, self.baseline.corrupt, layer), [column])[0]
        now = self.model.mlp_output(layer, read.flatten(0, 1)).unflatten(0, read.shape[:2])
        return {writer: now - self.baseline.corrupt.mlp_out[layer]}

    def final(self) -> Float[Tensor, "circuit batch d_model"]:
        """The stream that the logits read, at the answer position."""
        answer_at = self.baseline.batch.answer_at
        base = at_answer(self.baseline.corrupt.resid_final, answer_at).expand(self.n_circuits, -1, -1)
        column = len(self.layout.readers) - 1
        if not self.active([column]):
            return base
        rows = torch.arange(self.n_examples, device=answer_at.device)
        at_end = self.deltas[:, : len(self.writers), rows, answer_at]
        weights = self.masks[:, self.writers, column].to(base.dtype)
        return base + torch.einsum("cwbd,cw->cbd", at_end, weights)

    def _head_writer(self, layer: int, head: int) -> int:
        return self.layout.writer_index(Node(Kind.HEAD, layer, head))
