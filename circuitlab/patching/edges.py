"""Exact effect of every edge: one edge carries its writer's corrupted output, everything after it follows.

The edge u -> v changes only what v reads. Per layer and slot, the q, k or v of all heads is recomputed for one writer
at a time (heads do not see each other, so all of them are patched in one attention call and each edge takes its own
head's z from it); the change of the head's output is added to the stream behind its layer, and only the blocks after
that run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.metrics import Metric
from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Layout, Node, Reader, Slot
from circuitlab.patching.baseline import Baseline, at_answer, judge
from circuitlab.patching.packing import packs, rows_per_pack
from circuitlab.patching.writers import mlp_input, writer_differences
from circuitlab.progress import Progress, silent


@torch.no_grad()
def edge_effects(
    model: Model,
    baseline: Baseline,
    metric: Metric,
    *,
    budget: int | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "batch writer reader"]:
    """m(clean) - m(clean with this one edge corrupted), for every edge and example; 0 where there is no edge.

    Positive: the edge helps. Equals TransformerLens's `get_act_patch_direct_path` for a head's edges.
    """
    layout = Layout.of(model.spec)
    job = _Job(model, baseline, metric, writer_differences(model, baseline), layout, budget)
    effects = np.zeros((len(baseline.batch), len(layout.writers), len(layout.readers)))
    untouched = metric(baseline.clean_logits, baseline.batch).double()
    for number, part in enumerate(job.parts()):
        for columns, writers, values in part:
            effects[:, writers, columns] = (untouched[None] - values).T.cpu().numpy()
        progress("edges", number + 1, 4 * model.spec.n_layers + 1)
    return effects


Part = tuple[list[int], list[int], Float[Tensor, "edge batch"]]


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything the edges of one batch share."""

    model: Model
    baseline: Baseline
    metric: Metric
    differences: Float[Tensor, "writer batch seq d_model"]
    layout: Layout
    budget: int | None

    def parts(self) -> Iterator[Iterator[Part]]:
        """Edges by layer and kind of reader; each part yields columns, writers and metric values."""
        for layer in range(self.model.spec.n_layers):
            for slot in Slot:
                yield self._into_heads(layer, slot)
            yield self._into_mlp(layer)
        yield self._into_logits()

    def _into_heads(self, layer: int, slot: Slot) -> Iterator[Part]:
        model, clean, n_heads = self.model, self.baseline.clean, self.model.spec.n_heads
        columns = [self.layout.reader_index(Reader(Node(Kind.HEAD, layer, h), slot)) for h in range(n_heads)]
        for writers in self._writer_packs(self.layout.visible[columns[0]]):
            read = clean.resid_pre[layer] - self.differences[writers]
            read = read.flatten(0, 1)[None].expand(n_heads, -1, -1, -1)
            values = {s: self._repeated(getattr(clean, s.value)[layer], len(writers)) for s in Slot}
            values[slot] = model.project(layer, slot, range(n_heads), read).permute(1, 2, 0, 3)
            z = model.attend(layer, values[Slot.Q], values[Slot.K], values[Slot.V], self.baseline.frame)
            for head, column in enumerate(columns):
                patched = self._repeated(clean.z[layer], len(writers)).clone()
                patched[:, :, head] = z[:, :, head]
                now = model.attn_output(layer, patched).unflatten(0, (len(writers), -1))
                yield [column] * len(writers), writers, self._behind_attention(layer, now - clean.attn_out[layer])

    def _into_mlp(self, layer: int) -> Iterator[Part]:
        if not self.model.spec.has_mlp:
            return
        column = self.layout.reader_index(Reader(Node(Kind.MLP, layer)))
        clean = self.baseline.clean
        read = mlp_input(self.model, clean, layer)
        for writers in self._writer_packs(self.layout.visible[column]):
            changed = read - self.differences[writers]
            delta = self.model.mlp_output(layer, changed.flatten(0, 1)).unflatten(0, changed.shape[:2])
            values = self._run(layer + 1, clean.stream(layer + 1) + delta - clean.mlp_out[layer])
            yield [column] * len(writers), writers, values

    def _into_logits(self) -> Iterator[Part]:
        column, n_layers = len(self.layout.readers) - 1, self.model.spec.n_layers
        for writers in self._writer_packs(self.layout.visible[column]):
            stream = self.baseline.clean.resid_final - self.differences[writers]
            yield [column] * len(writers), writers, self._run(n_layers, stream)

    def _behind_attention(self, layer: int, delta: Float[Tensor, "edge batch seq d_model"]) -> Tensor:
        clean, model = self.baseline.clean, self.model
        if model.spec.parallel or not model.spec.has_mlp:
            return self._run(layer + 1, clean.stream(layer + 1) + delta)
        middle = mlp_input(model, clean, layer) + delta
        mlp = model.mlp_output(layer, middle.flatten(0, 1)).unflatten(0, middle.shape[:2])
        return self._run(layer + 1, middle + mlp)

    def _run(self, first: int, stream: Float[Tensor, "edge batch seq d_model"]) -> Float[Tensor, "edge batch"]:
        batch, n_edges = self.baseline.batch, len(stream)
        final = self.model.run_blocks(stream.flatten(0, 1), first, self.baseline.frame)
        example: Int[Tensor, " row"] = torch.arange(len(batch), device=stream.device).repeat(n_edges)
        at = at_answer(final, batch.answer_at[example])
        return judge(self.model, self.metric, self.baseline, at, example).double().unflatten(0, (n_edges, -1))

    def _writer_packs(self, n_visible: int) -> Iterator[list[int]]:
        """Writers that differ between the runs (the others' edges have no effect), a pack at a time."""
        live = [w for w in range(n_visible) if bool((self.differences[w] != 0).any())]
        # A run for every edge of a head's slot at a time, beside the q, k, v and z of all heads.
        spec, batch = self.model.spec, self.baseline.batch
        size = rows_per_pack(self.model, batch.n_tokens, self.budget, 2 * spec.n_heads) // len(batch)
        for pack in packs(len(live), max(1, size)):
            yield live[pack]

    def _repeated(self, value: Tensor, times: int) -> Tensor:
        return value.expand(times, *value.shape).flatten(0, 1)
