"""Run circuits that cut few edges, or all cut nearly the same: from the clean run, where every edge is kept.

A reader's input is its clean input, the differences to the replacement on its cut edges, and the differences to the
clean run of the writers on its kept edges:

    x_v = x_v(clean) + sum over cut u -> v of (r_u - a_u(clean)) + sum over kept u -> v of (a_u - a_u(clean))

The same circuits as from the ablated run, to the last rounding. There a node without a kept edge into it costs nothing,
here one without a cut edge into it or before it. What a node computes is computed once for all circuits in which it
reads the same (its *variants*), on whole prompts from the first token that can differ.
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
    heads_run_alone,
    mlp_input,
    project,
)
from circuitlab.parts import Kind, Layout, Slot
from circuitlab.patching.circuits.variants import Variants, distinct, slices
from circuitlab.patching.runs.ablation import AblatedRun, replacement_differences
from circuitlab.patching.runs.baseline import Baseline
from circuitlab.patching.runs.reach import tokens_that_differ

# Where a node's output is needed: nowhere, at the answer position, at every token that can differ.
NOWHERE, ANSWER, EVERYWHERE = 0, 1, 2
Q, K, V = Slot


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
        if ablated is None or baseline.is_corrupt(ablated.run):
            differs &= tokens_that_differ(spec, batch)
        tokens = differs.any(0).any(0)
        tokens[batch.answer_at] = True
        since = int(tokens.int().argmax()) if spec.causal else 0
        self.model, self.layout, self.arguments, self.clean = model, Layout.of(spec), baseline.arguments, clean
        self.since, self.n_tokens, self.answer_at = since, batch.n_tokens, batch.answer_at
        self._answer_is_last = bool((batch.answer_at == batch.n_tokens - 1).all())
        self.differs = differs.flatten(1).any(1).cpu().numpy()
        self.real = real_edges(self.layout)
        self.columns = [self.layout.readers_of(node) for node in self.layout.nodes]
        # By layer, whether its heads are computed one by one; else one norm or the model's own code needs them all.
        self.alone = [heads_run_alone(model, layer) for layer in range(spec.n_layers)]
        # By where they are needed, differences of replacements to the clean run.
        replaced = differences[:, :, since:].contiguous()
        self._replaced = {EVERYWHERE: replaced, ANSWER: self.at(replaced, ANSWER).contiguous()}
        heads, mlps = clean.resid_pre, [mlp_input(model, clean, layer) for layer in range(spec.n_layers)]
        streams = {Kind.HEAD: heads, Kind.MLP: mlps, Kind.LOGITS: [clean.resid_final]}
        late = {kind: [stream[None, :, since:].contiguous() for stream in found] for kind, found in streams.items()}
        self._clean_inputs = [late[reader.node.kind][reader.node.layer or 0] for reader in self.layout.readers]
        # What heads that are computed one by one read, after the norm.
        self.normed = [model.attn_input(n, x) if self.alone[n] else x for n, x in enumerate(late[Kind.HEAD])]
        token = torch.arange(batch.n_tokens, device=batch.answer_at.device)
        # What queries may see under causal attention, by where they are needed.
        self.sees = {ANSWER: token <= batch.answer_at[:, None, None], EVERYWHERE: (token <= token[since:, None])[None]}
        # By node or reader, the last value that all circuits of a run agreed on: what it depended on, its number, it.
        self.recent = dict[tuple[str, int], tuple[tuple[object, ...], int, Tensor | None]]()
        self.numbers = count()
        # By reader and where it is needed, the last input that all circuits agreed on, and the edges that it cuts.
        self._inputs = dict[tuple[int, int], tuple[bytes, Tensor]]()
        self._buffers = dict[object, Tensor]()

    @torch.no_grad()
    def run(self, masks: Bool[np.ndarray, "circuit writer reader"]) -> Float[Tensor, "circuit batch d_model"]:
        """Final stream at the answer position with only the masked edges kept; as `run_circuits`.

        Returns:
            Streams `[circuit, batch, d_model]`.
        """
        return _Run(self, masks & self.real).finished()

    def at(self, values: Float[Tensor, "variant batch token *_"], need: int) -> Float[Tensor, "variant batch here *_"]:
        """Values at the tokens where they are needed, of values at tokens up to the last, or at the answer already.

        Returns:
            Values `[variant, batch, here, ...]`.
        """
        if need == EVERYWHERE or values.shape[2] == 1:
            return values
        if self._answer_is_last:
            return values[:, :, -1:]
        rows = torch.arange(len(self.answer_at), device=values.device)
        return values[:, rows, self.answer_at - self.n_tokens][:, :, None]

    def input(
        self, column: int, cut: Bool[np.ndarray, "variant writer"], need: int
    ) -> Float[Tensor, "variant batch here d_model"]:
        """The clean input of a reader, with edges from some writers cut. Where all circuits agree, it is kept.

        Returns:
            The stream that it reads `[variant, batch, here, d_model]`.
        """
        edges, known = cut.tobytes(), self._inputs.get((column, need))
        if known is not None and known[0] == edges:
            return known[1]
        base, writers = self.at(self._clean_inputs[column], need), np.flatnonzero(cut.any(0))
        if not len(writers):
            return base
        some = slice(writers[0], writers[-1] + 1)
        replaced = self._replaced[need][some]
        chosen = torch.from_numpy(cut[:, some]).to(replaced)
        found = torch.addmm(base.flatten(), chosen, replaced.flatten(1)).view(len(cut), *base.shape[1:])
        if len(cut) == 1:
            self._inputs[column, need] = edges, found
        return found

    def of_clean(self, values: Float[Tensor, "batch seq *_"], need: int) -> Float[Tensor, "1 batch here *_"]:
        """Values of the clean run where they are needed.

        Returns:
            Values `[1, batch, here, ...]`.
        """
        return self.at(values[None, :, self.since :], need)

    def buffer(self, name: object, *shape: int) -> Tensor:
        """A tensor to write into, the same for every call with this name: new memory costs more than sums.

        Returns:
            The tensor, its content undefined.
        """
        size, there = prod(shape), self._buffers.get(name)
        if there is None or there.numel() < size:
            there = self._buffers[name] = self._clean_inputs[0].new_empty(size)
        return there[:size].view(shape)


class _Run:
    """Circuits on their way from the input to the logits."""

    def __init__(self, start: CleanStart, masks: Bool[np.ndarray, "circuit writer reader"]) -> None:
        self.start, self.model, self.layout = start, start.model, start.layout
        self.masks, self.kept_by_any = masks, np.asarray(masks.any(0))
        self.cut = (start.real & start.differs[:, None]) & ~masks
        self.cut_by_any = np.asarray(self.cut.any((0, 1)))
        # By writer that differs from the clean run in any circuit, its differences.
        self.changes = dict[int, Variants]()
        # By such a writer on which all circuits agree, a number that identifies its value.
        self.states = dict[int, int]()
        self.agreed = np.asarray((masks == masks[0]).all((0, 1)))
        self.needed = self._needed()

    def finished(self) -> Float[Tensor, "circuit batch d_model"]:
        """Take all steps; what the logits read at the answer position."""
        for number, node in enumerate(self.layout.writers):
            layer, need = node.layer or 0, int(self.needed[number])
            if node.kind is Kind.INPUT or need == NOWHERE:
                continue
            if node.kind is Kind.HEAD and not self.start.alone[layer]:
                if node.head == 0:
                    self._all_heads(number, layer, need)
                continue
            columns = self.start.columns[number]
            compute = partial(self._mlp if node.head is None else self._head, number, layer, need, columns)
            change = self._shared(("writer", number), columns, need, compute)
            if change is not None:
                self.changes[number] = change
        read = self._input(len(self.layout.readers) - 1, ANSWER)
        if read is None:
            return self.start.of_clean(self.start.clean.resid_final, ANSWER)[:, :, 0].repeat(len(self.masks), 1, 1)
        return read.at(np.arange(len(self.masks)))[:, :, 0].expand(len(self.masks), -1, -1)

    def _needed(self) -> Int[np.ndarray, " node"]:
        """Where each node is needed, from the answer backwards."""
        needed = np.zeros(len(self.layout.nodes), dtype=np.int64)
        needed[-1] = ANSWER
        for number in range(len(needed) - 1, 0, -1):
            node = self.layout.nodes[number]
            if node.head == self.model.spec.n_heads - 1 and not self.start.alone[node.layer or 0]:
                heads = slice(number + 1 - self.model.spec.n_heads, number + 1)
                needed[heads] = needed[heads].max()
            for column in self.start.columns[number] if needed[number] else ():
                all_tokens = self.layout.readers[column].slot in (K, V)
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

    def _input(self, column: int, need: int) -> Variants | None:
        """What a reader reads; None where no circuit changes it. It is overwritten by the next."""
        writers = [writer for writer in self.changes if self.kept_by_any[writer, column]]
        if not writers and not self.cut_by_any[column]:
            return None
        cut = self.cut[:, :, column]
        of_cut, cuts = distinct(cut)
        which = [np.where(self.masks[:, w, column], self.changes[w].of, -1) for w in writers]
        of, first = distinct(np.stack([of_cut, *which], 1))
        parts = [(self.start.input(column, cut[cuts], need), of_cut[first])]
        parts += [(self.start.at(self.changes[w].values, need), n[first]) for w, n in zip(writers, which, strict=True)]
        return Variants(self._sum(parts), of)

    def _sum(
        self, parts: Sequence[tuple[Float[Tensor, "_ batch here d_model"], Int[np.ndarray, " variant"]]]
    ) -> Float[Tensor, "variant batch here d_model"]:
        """Sums over parts: of each its values, and which of them it adds to each variant; none where negative."""
        alike = [values[index[0]] for values, index in parts if index[0] >= 0 and (index == index[0]).all()]
        varying = [(values, index) for values, index in parts if (index != index[0]).any()]
        total = sum(alike[1:], start=alike[0]) if alike else parts[0][0].new_zeros(parts[0][0].shape[1:])
        if not varying:
            return total[None]
        out = self.start.buffer("input", len(varying[0][1]), *total.shape)
        sums = total.expand_as(out)
        for values, index in varying:
            for here, which in slices(index):
                if which is not None or sums is not out:
                    torch.add(sums[here], 0 if which is None else values[which], out=out[here])
            sums = out
        return out

    def _mlp(self, writer: int, layer: int, need: int, columns: Sequence[int]) -> Variants | None:
        """The difference of an MLP's output to the clean run."""
        read = self._input(columns[0], need)
        if read is None:
            return None
        clean = self.start.of_clean(self.start.clean.mlp_out[layer], need)
        out = self.start.buffer(writer, *read.values.shape)
        return Variants(torch.sub(self.model.mlp_output(layer, read.values), clean, out=out), read.of)

    def _head(self, writer: int, layer: int, need: int, columns: Sequence[int]) -> Variants | None:
        """The difference of the output of a head of standard attention to the clean run."""
        start, head = self.start, self.layout.writers[writer].head or 0
        q = self._read(layer, Q, head, columns[0], need)
        k = self._read(layer, K, head, columns[1], EVERYWHERE)
        pattern, read = self._pattern(layer, head, need, q, k), self._input(columns[2], EVERYWHERE)
        found = [variants for variants in (pattern, read) if variants is not None]
        if not found:
            return None
        of, circuits = distinct(np.stack([variants.of for variants in found], 1))
        clean, recorded, changes = start.clean, start.clean.v[layer][:, :, head], list[Tensor]()
        if pattern is None:
            weights = start.of_clean(clean.pattern[layer][:, head], need)
        else:
            weights = pattern.at(circuits)
            changes.append(torch.matmul(weights, recorded) - start.of_clean(clean.z[layer][:, :, head], need))
        if read is not None:
            weights = weights[..., start.since :]
            if need == ANSWER:
                # What the head reads is mixed first, and projected at one token.
                mixed = torch.matmul(weights, self.model.attn_input(layer, read.at(circuits)))
                mixed = mixed - torch.matmul(weights, start.normed[layer])
                changes.append(head_values(self.model, layer, head, mixed))
            else:
                values = self._projected(layer, V, head, read).at(circuits) - recorded[:, start.since :]
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
        start, recorded = self.start, self.start.clean.k[layer][:, :, head]
        queries = start.of_clean(start.clean.q[layer][:, :, head], need) if q is None else q.at(circuits)
        if k is None:
            scores = torch.matmul(queries, recorded.transpose(1, 2))
        else:
            early = torch.matmul(queries, recorded[:, : start.since].transpose(1, 2))
            late = torch.matmul(queries, k.at(circuits).transpose(2, 3))
            scores = torch.cat([early.expand(*late.shape[:3], -1), late], 3)
        return Variants(attention_pattern(self.model, layer, scores, start.sees[need]), of)

    def _read(self, layer: int, slot: Slot, head: int, column: int, need: int) -> Variants | None:
        """A head's queries, keys or values, where any circuit changes them."""

        def compute() -> Variants | None:
            read = self._input(column, need)
            return None if read is None else self._projected(layer, slot, head, read)

        return self._shared(("reader", column), [column], need, compute)

    def _projected(self, layer: int, slot: Slot, head: int, read: Variants) -> Variants:
        values = project(self.model, layer, slot, [head], read.values.flatten(0, 1)[None])[0]
        return Variants(values.unflatten(0, read.values.shape[:2]), read.of)

    def _all_heads(self, first_writer: int, layer: int, need: int) -> None:
        """The differences of a layer's heads to the clean run, computed together."""
        n_heads, start, reads = self.model.spec.n_heads, self.start, dict[tuple[Slot, int], Variants]()
        for head in range(n_heads):
            for slot, column in zip(Slot, start.columns[first_writer + head], strict=True):
                read = self._read(layer, slot, head, column, need if slot is Q else EVERYWHERE)
                if read is not None:
                    reads[slot, head] = read
        if not reads:
            return
        of, circuits = distinct(np.stack([read.of for read in reads.values()], 1))
        z, recorded = self._z(layer, need, reads, circuits), start.of_clean(start.clean.z[layer], need)
        now, was = (self.model.head_outputs(layer, values.flatten(0, 1)) for values in (z, recorded))
        changes = now.unflatten(1, z.shape[:2]) - was[:, None]
        self.changes |= {first_writer + head: Variants(values, of) for head, values in enumerate(changes)}

    def _z(
        self, layer: int, need: int, reads: Mapping[tuple[Slot, int], Variants], circuits: Int[np.ndarray, " variant"]
    ) -> Float[Tensor, "variant batch here head d_head"]:
        """The z of all heads of a layer in some circuits, by the model's own attention."""
        start, clean = self.start, self.start.clean
        # Queries begin with the first answer or the first token that differs.
        first = int(start.answer_at.min()) if need == ANSWER else start.since
        recorded = {Q: clean.q[layer][:, first:], K: clean.k[layer], V: clean.v[layer]}
        slots = {slot: values.repeat(len(circuits), 1, 1, 1, 1) for slot, values in recorded.items()}
        for (slot, head), read in reads.items():
            values = read.at(circuits)
            if slot is Q and need == ANSWER:
                rows = torch.arange(len(start.answer_at), device=values.device)
                slots[Q][:, rows, start.answer_at - first, head] = values[:, :, 0]
            else:
                slots[slot][:, :, -values.shape[2] :, head] = values
        inputs = {slot: values.flatten(0, 1) for slot, values in slots.items()}
        z = attend(self.model, layer, inputs, start.arguments)
        return start.at(z.unflatten(0, (len(circuits), -1)), need)
