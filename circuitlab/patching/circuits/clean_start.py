"""Run circuits that cut few edges, or all cut nearly the same: from the clean run, where every edge is kept.

A reader's input is the clean stream, what its cut edges replace, and how far the writers on its kept edges are from the
clean run:

    x_v = x_v(clean) + sum over cut u -> v of (r_u - a_u(clean)) + sum over kept u -> v of (a_u - a_u(clean))

The same circuits as from the ablated run, to the last rounding. There a node without a kept edge into it costs nothing,
here one without a cut edge into it or before it. Circuits of a search that cuts from the logits backwards (ACDC) agree
on nearly all nodes: whatever a node computes is computed once for all circuits in which it reads the same (its
*variants*), on whole prompts from the first token that can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.graphs.prune import real_edges
from circuitlab.models.protocol import Model
from circuitlab.models.steps import (
    attend,
    attention_pattern,
    head_values,
    heads_interact,
    heads_run_alone,
    mlp_input,
    project,
)
from circuitlab.parts import Kind, Layout, Slot
from circuitlab.patching.circuits.variants import Variants, distinct, runs, taken
from circuitlab.patching.runs.ablation import AblatedRun, replacement_differences
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import tokens_that_differ

# Where a node's output is needed: nowhere, at the answer position, at every token that can differ.
NOWHERE, ANSWER, EVERYWHERE = 0, 1, 2
SLOTS = tuple(Slot)
Q, K, V = range(3)


class CleanStart:
    """One batch, ready to run circuits from the clean run.

    Args:
        model: The model.
        baseline: The batch, run clean and corrupted.
        ablated: The run with every edge replaced; the corrupted run by default.
    """

    def __init__(self, model: Model, baseline: Baseline, ablated: AblatedRun | None = None) -> None:
        batch, clean, spec = baseline.batch, baseline.clean, model.spec
        differences = replacement_differences(model, baseline, ablated)
        differs = (differences != 0).any(3)
        if ablated is None or ablated.run is baseline.corrupt:
            differs &= tokens_that_differ(spec, batch)
        first = torch.nonzero(differs.any(0).any(0)) if spec.causal else torch.zeros(1, 1)
        since = min(int(first[0]) if len(first) else batch.n_tokens, int(batch.answer_at.min()))
        self.model, self.layout, self.arguments = model, Layout.of(spec), baseline.arguments
        self.since, self.answer_at, self.clean = since, batch.answer_at, clean
        self.differs = differs.flatten(1).any(1).cpu().numpy()
        # By where they are needed: how far replacements are from the clean run, and clean streams.
        replaced = differences[:, :, since:].contiguous()
        self.replaced = {EVERYWHERE: replaced, ANSWER: self.at_answer(replaced).contiguous()}
        self.heads_in = [stream[:, since:].contiguous() for stream in clean.resid_pre]
        self.mlp_in = [mlp_input(model, clean, layer)[:, since:].contiguous() for layer in range(spec.n_layers)]
        self._buffers = dict[object, Tensor]()
        # By node or reader, the last value that all circuits of a run agreed on: what it depended on, its number, it.
        self.recent = dict[tuple[str, int], tuple[tuple[object, ...], int, Tensor | None]]()
        self.numbers = count()
        self._normed = dict[int, Tensor]()
        token = torch.arange(batch.n_tokens, device=batch.answer_at.device)
        # What queries may see under causal attention, by where they are needed.
        self.sees = {ANSWER: token <= batch.answer_at[:, None, None], EVERYWHERE: (token <= token[since:, None])[None]}
        self._decided = dict[tuple[int, int], tuple[bytes, Tensor]]()
        self.real = real_edges(self.layout)

    @torch.no_grad()
    def run(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[Tensor, "circuit batch d_model"]:
        """Final stream at the answer position with only the masked edges kept.

        Args:
            masks: Kept edges, by the numbers of `Layout`; entries that are no edge of the model are ignored.

        Returns:
            One final stream per circuit and example; the same as `run_circuits` from the ablated run.
        """
        return _Run(self, masks & self.real).finished()

    def clean_input(self, column: int, need: int) -> Float[Tensor, "batch here d_model"]:
        """What a reader reads in the clean run."""
        node = self.layout.readers[column].node
        if node.layer is None:
            return self.at_answer(self.clean.resid_final[None], 0)[0]
        stream = (self.heads_in if node.kind is Kind.HEAD else self.mlp_in)[node.layer]
        return stream if need == EVERYWHERE else self.at_answer(stream[None])[0]

    def clean_queries(self, layer: int, head: int, need: int) -> Float[Tensor, "batch here d_head"]:
        """A head's queries in the clean run."""
        q = self.clean.q[layer][:, self.since :, head]
        return q if need == EVERYWHERE else self.at_answer(q[None])[0]

    def clean_pattern(self, layer: int, head: int, need: int) -> Float[Tensor, "batch here seq"]:
        """A head's attention weights in the clean run."""
        pattern = self.clean.pattern[layer][:, head, self.since :]
        return pattern if need == EVERYWHERE else self.at_answer(pattern[None])[0]

    def normed(self, layer: int) -> Float[Tensor, "batch token d_model"]:
        """What heads of a layer read in the clean run, after the norm."""
        if layer not in self._normed:
            self._normed[layer] = self.model.attn_input(layer, self.heads_in[layer])
        return self._normed[layer]

    def inputs(
        self, column: int, cut: Bool[np.ndarray, "variant writer"], need: int
    ) -> Float[Tensor, "variant batch here d_model"]:
        """The clean input of a reader, with edges from some writers cut. Where all circuits agree, it is kept."""
        key = cut.tobytes()
        if len(cut) == 1 and self._decided.get((column, need), (b"", None))[0] == key:
            return self._decided[column, need][1]
        base = self.clean_input(column, need)
        writers = np.flatnonzero(cut.any(0))
        if not len(writers):
            return base[None]
        replaced = self.replaced[need][writers[0] : writers[-1] + 1]
        chosen = torch.from_numpy(cut[:, writers[0] : writers[-1] + 1]).to(replaced)
        out = torch.addmm(base.flatten(), chosen, replaced.flatten(1)).view(len(cut), *base.shape)
        if len(cut) == 1:
            self._decided[column, need] = key, out
        return out

    def at_answer(
        self, values: Float[Tensor, "variant batch token _"], first: int | None = None
    ) -> Float[Tensor, "variant batch 1 _"]:
        """Values at the answer positions, of values from token `first` on."""
        first = self.since if first is None else first
        if bool((self.answer_at == first + values.shape[2] - 1).all()):
            return values[:, :, -1:]
        rows = torch.arange(len(self.answer_at), device=values.device)
        return values[:, rows, self.answer_at - first][:, :, None]

    def buffer(self, name: object, *shape: int) -> Tensor:
        """A tensor to write into, the same for every call with this name: new memory costs more than sums."""
        size, there = prod(shape), self._buffers.get(name)
        if there is None or there.numel() < size:
            there = self._buffers[name] = self.replaced[EVERYWHERE].new_empty(size)
        return there[:size].view(shape)


class _Run:
    """Circuits on their way from the input to the logits."""

    def __init__(self, start: CleanStart, masks: Bool[np.ndarray, "circuit writer reader"]) -> None:
        self.start, self.model, self.layout = start, start.model, start.layout
        self.masks, self.kept_by_any = masks, np.asarray(masks.any(0))
        self.cut = (start.real & start.differs[:, None]) & ~masks
        self.cut_by_any = np.asarray(self.cut.any((0, 1)))
        # By writer that differs from the clean run in any circuit, by how much.
        self.changes = dict[int, Variants]()
        # By such a writer on which all circuits agree, a number that stands for its value.
        self.states = dict[int, int]()
        self.agreed = np.asarray((masks == masks[0]).all((0, 1)))
        self.needed = self._needed()

    def finished(self) -> Float[Tensor, "circuit batch d_model"]:
        """Take all steps; what the logits read at the answer position."""
        for number, node in enumerate(self.layout.writers):
            layer = node.layer or 0
            if node.kind is Kind.HEAD and self._joint(layer):
                if node.head == 0:
                    self._all_heads(layer, number)
            elif node.kind is not Kind.INPUT and self.needed[number]:
                columns, need = self.layout.readers_of(node), int(self.needed[number])
                compute = partial(self._mlp if node.head is None else self._head, number, layer, need, columns)
                change = self._shared(("writer", number), columns, need, compute)
                if change is not None:
                    self.changes[number] = change
        column = len(self.layout.readers) - 1
        read = self._input(column, ANSWER)
        if read is None:
            return self.start.clean_input(column, ANSWER)[:, 0].repeat(len(self.masks), 1, 1)
        return read.at(np.arange(len(self.masks)))[:, :, 0].expand(len(self.masks), -1, -1)

    def _needed(self) -> Int[np.ndarray, " node"]:
        """Where each node is needed, from the answer backwards."""
        needed = np.zeros(len(self.layout.nodes), dtype=np.int64)
        needed[-1] = ANSWER
        for number in range(len(needed) - 1, 0, -1):
            node = self.layout.nodes[number]
            if node.kind is Kind.HEAD and node.head == self.model.spec.n_heads - 1 and self._joint(node.layer or 0):
                heads = slice(number + 1 - self.model.spec.n_heads, number + 1)
                needed[heads] = needed[heads].max()
            for column in self.layout.readers_of(node) if needed[number] else ():
                all_tokens = self.layout.readers[column].slot in (Slot.K, Slot.V)
                need = EVERYWHERE if all_tokens else needed[number]
                needed[:-1] = np.maximum(needed[:-1], need * self.kept_by_any[:, column])
        return needed

    def _shared(
        self, name: tuple[str, int], columns: Sequence[int], need: int, compute: Callable[[], Variants | None]
    ) -> Variants | None:
        """What is computed from some readers' inputs; the same as in earlier circuits, where it depends on the same."""
        part = slice(columns[0], columns[-1] + 1, columns[1] - columns[0] if len(columns) > 1 else 1)
        kept_by_any = np.asarray(self.kept_by_any[:, part].any(1))
        before = [self.states.get(writer) for writer in self.changes if kept_by_any[writer]]
        if None in before or not self.agreed[part].all():
            return compute()
        state = need, self.masks[0][:, part].tobytes(), *before
        known = self.start.recent.get(name)
        if known is None or known[0] != state:
            found = compute()
            known = state, next(self.start.numbers), None if found is None else found.values.clone()
            self.start.recent[name] = known
        _, number, values = known
        if name[0] == "writer":
            self.states[name[1]] = number
        return None if values is None else Variants(values, np.zeros(len(self.masks), dtype=np.int64))

    def _joint(self, layer: int) -> bool:
        """Whether all heads of a layer are computed together: where one norm or the model's own code needs them all."""
        return not heads_run_alone(self.model, layer)

    def _input(self, column: int, need: int) -> Variants | None:
        """What a reader reads; None where no circuit changes it. It is overwritten by the next."""
        writers = [writer for writer in self.changes if self.kept_by_any[writer, column]]
        if not writers and not self.cut_by_any[column]:
            return None
        cut = self.cut[:, :, column]
        of_cut, cuts = distinct(cut)
        which = [np.where(self.masks[:, w, column], self.changes[w].of, -1) for w in writers]
        of, first = distinct(np.stack([of_cut, *which], 1))
        parts = [(self.start.inputs(column, cut[cuts], need), of_cut[first])]
        parts += [(self._change(w, need), index[first]) for w, index in zip(writers, which, strict=True)]
        return Variants(self._sum(parts), of)

    def _change(self, writer: int, need: int) -> Float[Tensor, "variant batch here d_model"]:
        values = self.changes[writer].values
        return values if need == EVERYWHERE or values.shape[2] == 1 else self.start.at_answer(values)

    def _sum(
        self, parts: Sequence[tuple[Float[Tensor, "_ batch here d_model"], Int[np.ndarray, " variant"]]]
    ) -> Float[Tensor, "variant batch here d_model"]:
        """For each variant, the sum of what each part has for it; a negative number stands for nothing."""
        alike = [values[index[0]] for values, index in parts if index[0] >= 0 and (index == index[0]).all()]
        varying = [(values, index) for values, index in parts if (index != index[0]).any()]
        base = sum(alike[1:], start=alike[0])[None] if alike else None
        if not varying:
            assert base is not None
            return base
        if base is None:
            # Only the first part may have something for all variants, and has it.
            (values, index), *varying = varying
            base = taken(values, index)
            if not varying:
                return base
        out = self.start.buffer("input", len(varying[0][1]), *base.shape[1:])
        base = base.expand_as(out)
        if varying[0][1].min() < 0:
            out[:] = base
        for number, (values, index) in enumerate(varying):
            first = number == 0 and index.min() >= 0
            for places, which in runs(index):
                if first:
                    torch.add(base[places], values[which], out=out[places])
                else:
                    out[places].add_(values[which])
        return out

    def _mlp(self, writer: int, layer: int, need: int, columns: Sequence[int]) -> Variants | None:
        """How far an MLP is from the clean run."""
        read = self._input(columns[0], need)
        if read is None:
            return None
        clean = self.start.clean.mlp_out[layer]
        clean = clean[:, self.start.since :] if need == EVERYWHERE else self.start.at_answer(clean[None], 0)[0]
        out = self.start.buffer(writer, *read.values.shape)
        return Variants(torch.sub(self.model.mlp_output(layer, read.values), clean, out=out), read.of)

    def _head(self, writer: int, layer: int, need: int, columns: Sequence[int]) -> Variants | None:
        """How far a head of plain softmax attention is from the clean run."""
        start, head = self.start, self.layout.writers[writer].head or 0
        q = self._read(layer, Q, head, columns[Q], need)
        k = self._read(layer, K, head, columns[K], EVERYWHERE)
        pattern = self._pattern(layer, head, need, q, k)
        read = self._input(columns[V], EVERYWHERE)
        found = [variants for variants in (pattern, read) if variants is not None]
        if not found:
            return None
        of, circuits = distinct(np.stack([variants.of for variants in found], 1))
        weights = start.clean_pattern(layer, head, need)[None] if pattern is None else pattern.at(circuits)
        own, changes = start.clean.v[layer][:, :, head], list[Tensor]()
        if pattern is not None:
            changes.append(torch.matmul(weights, own) - self._clean_z(layer, [head], need)[:, :, :, 0])
        if read is not None:
            weights = weights[..., start.since :]
            if need == ANSWER:
                # What the head reads is mixed first, and projected at one token.
                mixed = torch.matmul(weights, self.model.attn_input(layer, read.at(circuits)))
                mixed = mixed - torch.matmul(weights, start.normed(layer))
                changes.append(head_values(self.model, layer, head, mixed))
            else:
                values = self._projected(layer, V, head, read).at(circuits) - own[:, start.since :]
                changes.append(torch.matmul(weights, values))
        change = changes[0] if len(changes) == 1 else changes[0] + changes[1]
        z = change.flatten(0, 1)[:, :, None].expand(-1, -1, self.model.spec.n_heads, -1)
        out = self.model.head_outputs(layer, z, [head])[0]
        return Variants(out.unflatten(0, change.shape[:2]), of)

    def _pattern(self, layer: int, head: int, need: int, q: Variants | None, k: Variants | None) -> Variants | None:
        """A head's attention weights; None where they are the clean run's."""
        found = [variants for variants in (q, k) if variants is not None]
        if not found:
            return None
        of, circuits = distinct(np.stack([variants.of for variants in found], 1))
        start, own = self.start, self.start.clean.k[layer][:, :, head]
        queries = start.clean_queries(layer, head, need)[None] if q is None else q.at(circuits)
        if k is None:
            scores = torch.matmul(queries, own.transpose(1, 2))
        else:
            early = torch.matmul(queries, own[:, : start.since].transpose(1, 2))
            late = torch.matmul(queries, k.at(circuits).transpose(2, 3))
            scores = torch.cat([early.expand(*late.shape[:3], -1), late], 3)
        return Variants(attention_pattern(self.model, layer, scores, start.sees[need]), of)

    def _read(self, layer: int, slot: int, head: int, column: int, need: int) -> Variants | None:
        """A head's queries, keys or values, where any circuit changes them."""

        def compute() -> Variants | None:
            read = self._input(column, need)
            return None if read is None else self._projected(layer, slot, head, read)

        return self._shared(("reader", column), [column], need, compute)

    def _projected(self, layer: int, slot: int, head: int, read: Variants) -> Variants:
        values = project(self.model, layer, SLOTS[slot], [head], read.values.flatten(0, 1)[None])[0]
        return Variants(values.unflatten(0, read.values.shape[:2]), read.of)

    def _all_heads(self, layer: int, first_writer: int) -> None:
        """How far a layer's heads are from the clean run, computed together."""
        n_heads, reads = self.model.spec.n_heads, dict[tuple[int, int], Variants]()
        need = int(self.needed[first_writer : first_writer + n_heads].max())
        for head in range(n_heads) if need else ():
            for slot, column in enumerate(self.layout.readers_of(self.layout.writers[first_writer + head])):
                read = self._read(layer, slot, head, column, need if slot == Q else EVERYWHERE)
                if read is not None:
                    reads[slot, head] = read
        if not reads:
            return
        of, circuits = distinct(np.stack([read.of for read in reads.values()], 1))
        z, own = self._z(layer, need, reads, circuits), self._clean_z(layer, range(n_heads), need)
        if heads_interact(self.model, layer):
            now, was = (self.model.head_outputs(layer, values.flatten(0, 1)) for values in (z, own))
            changes = now.unflatten(1, z.shape[:2]) - was[:, None]
        else:
            changes = self.model.head_outputs(layer, (z - own).flatten(0, 1)).unflatten(1, z.shape[:2])
        self.changes |= {first_writer + head: Variants(values, of) for head, values in enumerate(changes)}

    def _z(
        self, layer: int, need: int, reads: Mapping[tuple[int, int], Variants], circuits: Int[np.ndarray, " variant"]
    ) -> Float[Tensor, "variant batch here head d_head"]:
        """The z of all heads of a layer in some circuits, by the model's own attention."""
        start, n_tokens = self.start, self.start.clean.v[layer].shape[1]
        # Queries of the last tokens, beginning with the first answer or the first token that differs.
        asking = n_tokens - (int(start.answer_at.min()) if need == ANSWER else start.since)
        own = (start.clean.q[layer][:, -asking:], start.clean.k[layer], start.clean.v[layer])
        slots = [values.repeat(len(circuits), 1, 1, 1, 1) for values in own]
        for (slot, head), read in reads.items():
            values = read.at(circuits)
            if slot == Q and need == ANSWER:
                rows = torch.arange(len(start.answer_at), device=values.device)
                slots[Q][:, rows, start.answer_at - start.answer_at.min(), head] = values[:, :, 0]
            else:
                slots[slot][:, :, -values.shape[2] :, head] = values
        inputs = {slot: values.flatten(0, 1) for slot, values in zip(SLOTS, slots, strict=True)}
        z = attend(self.model, layer, inputs, start.arguments).unflatten(0, (len(circuits), -1))
        return z if need == EVERYWHERE else start.at_answer(z.flatten(3), n_tokens - asking).unflatten(3, z.shape[3:])

    def _clean_z(self, layer: int, heads: Sequence[int], need: int) -> Float[Tensor, "1 batch here head d_head"]:
        z = self.start.clean.z[layer][None, :, self.start.since :, heads]
        return z if need == EVERYWHERE else self.start.at_answer(z.flatten(3)).unflatten(3, z.shape[3:])
