"""The heads of a layer in a circuit run: their z, and the difference of each to its output in the ablated run.

Heads of a layer do not read each other. Attention is called once, on rows in which the versions of a head stand below
each other in the column of that head; a shorter column is filled up with the values of the ablated run. Where one norm
spans the queries or keys of all heads, each row holds the heads of one combination (`JointHeads`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model, Recording
from circuitlab.models.steps import attend_vectors, changes_other_heads
from circuitlab.parts import Layout, Slot
from circuitlab.patching.circuits.plan import HeadResult, JointHeads, Plan, WriterChange
from circuitlab.patching.circuits.reads import Vectors, read_heads
from circuitlab.patching.circuits.rows import Table, at_once

# Versions of one writer, and one row for every token at which each is made.
Said = tuple[list[WriterChange], Float[Tensor, "token d_model"]]


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """What a run needs to compute heads.

    Attributes:
        model: The model.
        arguments: What its blocks are called with at this length.
        ablated: The run with every edge replaced.
        plan: What is computed.
        table: What versions add to the ablated run.
    """

    model: Model
    arguments: BlockArguments
    ablated: Recording
    plan: Plan
    table: Table

    def said(self, layer: int) -> Iterator[Said]:
        """How far each version of a head of this layer is from the head in the ablated run."""
        attended = self.plan.of(HeadResult, self.plan.heads[layer])
        if not attended:
            return
        mixed = self.plan.of(JointHeads, self.plan.heads[layer])
        together = changes_other_heads(self.model, layer, Slot.Q)
        places = self._places_together(attended, mixed) if together else self._places(attended)
        vectors = read_heads(self.model, layer, self.plan, self.table, self.ablated)
        since = min(int((self.plan.sets.indices(self.plan.tokens[n]) % self.plan.sets.seq).min()) for n in attended)
        where = {
            slot: self._arranged(number, vectors, attended, places, since if slot is Slot.Q else 0)
            for number, slot in enumerate(Slot)
        }
        z = attend_vectors(self.model, layer, vectors.values, where, self.arguments).flatten(0, 2)
        if mixed:
            yield from self._through_norms(layer, z, mixed, None if together else dict(places), since)
        else:
            yield from self._each(layer, z, dict(places), since)

    def _places(self, attended: Mapping[int, HeadResult]) -> list[tuple[int, int]]:
        """Each z, and where it stands in its head's column at the first token, counted in vectors."""
        depth, places = Counter[int](), list[tuple[int, int]]()
        for number, step in attended.items():
            places.append((number, depth[step.head] * self._size + step.head))
            depth[step.head] += 1
        return places

    def _places_together(
        self, attended: Mapping[int, HeadResult], mixed: Mapping[int, JointHeads]
    ) -> list[tuple[int, int]]:
        """The same with the heads of a combination in one row; a z is in as many rows as there are combinations."""
        return [
            (number, row * self._size + head)
            for row, step in enumerate(mixed.values())
            for head, number in enumerate(step.heads)
            if number is not None and number in attended
        ]

    def _arranged(
        self,
        slot: int,
        vectors: Vectors,
        attended: Mapping[int, HeadResult],
        places: Sequence[tuple[int, int]],
        since: int = 0,
    ) -> Int[Tensor, "row _ head"]:
        """Which vectors attention is called with in one slot, from a token on."""
        n_rows = 1 + max(place for _, place in places) // self._size
        source = np.tile(slot * self._size + np.arange(self._size), n_rows)
        for number, place in places:
            read = attended[number].reads[slot]
            if read is not None and read in vectors.of:
                source[place + self._tokens(self.plan.tokens[read])] = vectors.of[read]
        source = source.reshape(n_rows * self.plan.sets.batch, self.plan.sets.seq, -1)[:, since:]
        return self._put(source)

    def _each(self, layer: int, z: Float[Tensor, "_ d_head"], places: Mapping[int, int], since: int) -> Iterator[Said]:
        """Each head from the change of its own z."""
        made = self.plan.made(self.plan.heads[layer])
        now = np.concatenate([places[one.made_of] + self._tokens(one.tokens) for one in made])
        change = z[self._put(self._asked(now, since))].sub_(
            self.ablated.z[layer].flatten(0, 2)[self._put(now % self._size)]
        )
        alike, start = defaultdict[int, list[tuple[int, list[WriterChange]]]](list), 0
        for _, group in groupby(made, key=lambda one: one.writer):
            versions = list(group)
            n_rows = sum(self.plan.sets.count(one.tokens) for one in versions)
            alike[n_rows].append((start, versions))
            start += n_rows
        for n_rows, of_heads in alike.items():
            for some in at_once(of_heads, n_rows):
                heads = [self._head(versions[0].writer) for _, versions in some]
                rows = [change[first : first + n_rows] for first, _ in some]
                said = self.model.head_outputs(layer, self._columns(heads, rows), heads)[:, :, 0]
                yield from zip((versions for _, versions in some), said, strict=True)

    def _columns(
        self, heads: Sequence[int], vectors: Sequence[Float[Tensor, "token d_head"]]
    ) -> Float[Tensor, "token 1 head d_head"]:
        """A z with these heads' vectors in their columns; the others are not read."""
        if len(heads) == 1:
            return vectors[0][:, None, None].expand(-1, 1, self.model.spec.n_heads, -1)
        columns = vectors[0].new_zeros(len(vectors[0]), 1, self.model.spec.n_heads, vectors[0].shape[1])
        columns[:, 0, list(heads)] = torch.stack(list(vectors), 1)
        return columns

    def _through_norms(
        self,
        layer: int,
        z: Float[Tensor, "_ d_head"],
        mixed: Mapping[int, JointHeads],
        places: Mapping[int, int] | None,
        since: int,
    ) -> Iterator[Said]:
        """Heads whose outputs depend on each other, through a norm: their outputs less those in the ablated run.

        Without places each row of z is one combination of heads.
        """
        own, n_heads = self.ablated.z[layer].flatten(0, 2), self.model.spec.n_heads
        rows, first, end = [], dict[int, int](), 0
        for row, (number, step) in enumerate(mixed.items()):
            tokens, source = self.plan.sets.indices(self.plan.tokens[number]), np.arange(self._size)
            if places is None:
                parts = [row * self._size + self._tokens(self.plan.tokens[number])[:, None] + np.arange(n_heads)]
            else:
                found = [attended for attended in step.heads if attended is not None and attended in places]
                parts = [places[attended] + self._tokens(self.plan.tokens[attended]) for attended in found]
            for here in parts:
                source[here % self._size] = self._size + self._asked(here, since)
            rows.append(source.reshape(-1, n_heads)[tokens])
            first[number], end = end, end + len(rows[-1])
        heads = torch.cat([own, z])[self._put(np.concatenate(rows))]
        now = self.model.head_outputs(layer, heads[:, None])[:, :, 0]
        was = self.model.head_outputs(layer, own.unflatten(0, (-1, 1, n_heads)))[:, :, 0]
        for one in self.plan.made(self.plan.heads[layer]):
            head, tokens = self._head(one.writer), self.plan.sets.indices(one.tokens)
            row = first[one.made_of] + self.plan.sets.among(one.tokens, self.plan.tokens[one.made_of])
            yield [one], now[head, self._put(row)] - was[head, self._put(tokens)]

    @property
    def _size(self) -> int:
        """How many vectors z of one run has: tokens times heads."""
        return self.plan.sets.size * self.model.spec.n_heads

    def _asked(self, vectors: Int[np.ndarray, "*token"], since: int) -> Int[np.ndarray, "*token"]:
        """Where vectors of whole prompts stand among those of the queries, from token `since` on."""
        whole = self.plan.sets.seq * self.model.spec.n_heads
        row, inside = np.divmod(vectors, whole)
        skipped = since * self.model.spec.n_heads
        return row * (whole - skipped) + inside - skipped

    def _tokens(self, tokens: int) -> Int[np.ndarray, " token"]:
        """Where tokens stand in one head's column."""
        return self.plan.sets.indices(tokens) * self.model.spec.n_heads

    def _head(self, writer: int) -> int:
        head = Layout.of(self.model.spec).writers[writer].head
        assert head is not None
        return head

    def _put(self, index: Int[np.ndarray, "*token"]) -> Int[Tensor, "*token"]:
        return torch.from_numpy(index).to(self.ablated.resid_final.device)
