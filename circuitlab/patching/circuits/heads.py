"""The heads of a layer in a circuit run: their z, and the difference of each to its output in the ablated run.

Heads of a layer do not read each other. Attention is called once, on rows in which the versions of a head are below
each other in the column of that head; a shorter column is filled up with the values of the ablated run. Where a norm
makes heads depend on each other, each row holds the heads of one combination (`JointHeads`).
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
from circuitlab.models.steps import attend_vectors
from circuitlab.parts import Layout, Slot
from circuitlab.patching.circuits.plan import HeadResult, JointHeads, Plan, WriterChange
from circuitlab.patching.circuits.reads import Vectors, read_heads
from circuitlab.patching.circuits.rows import Table, grouped

# Changes of one writer, and one row for every token at which each differs.
Changed = tuple[list[WriterChange], Float[Tensor, "token d_model"]]


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

    def changes(self, layer: int) -> Iterator[Changed]:
        """The difference of each version of a head of this layer to the head in the ablated run."""
        heads = self.plan.of(HeadResult, self.plan.heads[layer])
        if not heads:
            return
        joint = self.plan.of(JointHeads, self.plan.heads[layer])
        places = self._joint_places(heads, joint) if joint else self._places(heads)
        vectors = read_heads(self.model, layer, self.plan, self.table, self.ablated)
        since = min(int((self.plan.sets.indices(self.plan.tokens[n]) % self.plan.sets.seq).min()) for n in heads)
        where = {
            slot: self._arranged(number, vectors, heads, places, since if slot is Slot.Q else 0)
            for number, slot in enumerate(Slot)
        }
        z = attend_vectors(self.model, layer, vectors.values, where, self.arguments).flatten(0, 2)
        yield from self._joint_changes(layer, z, joint, since) if joint else self._each(layer, z, dict(places), since)

    def _places(self, heads: Mapping[int, HeadResult]) -> list[tuple[int, int]]:
        """Each z, and its place in its head's column at the first token, counted in vectors."""
        depth, places = Counter[int](), list[tuple[int, int]]()
        for number, step in heads.items():
            places.append((number, depth[step.head] * self._size + step.head))
            depth[step.head] += 1
        return places

    def _joint_places(self, heads: Mapping[int, HeadResult], joint: Mapping[int, JointHeads]) -> list[tuple[int, int]]:
        """The same with the heads of a combination in one row; a z is in as many rows as there are combinations."""
        return [
            (number, row * self._size + head)
            for row, step in enumerate(joint.values())
            for head, number in enumerate(step.heads)
            if number is not None and number in heads
        ]

    def _arranged(
        self,
        slot: int,
        vectors: Vectors,
        heads: Mapping[int, HeadResult],
        places: Sequence[tuple[int, int]],
        since: int = 0,
    ) -> Int[Tensor, "row _ head"]:
        """Which vectors attention is called with in one slot, from a token on."""
        n_rows = 1 + max(place for _, place in places) // self._size
        source = np.tile(slot * self._size + np.arange(self._size), n_rows)
        for number, place in places:
            read = heads[number].reads[slot]
            if read is not None and read in vectors.of:
                source[place + self._tokens(self.plan.tokens[read])] = vectors.of[read]
        source = source.reshape(n_rows * self.plan.sets.batch, self.plan.sets.seq, -1)[:, since:]
        return self._put(source)

    def _each(
        self, layer: int, z: Float[Tensor, "_ d_head"], places: Mapping[int, int], since: int
    ) -> Iterator[Changed]:
        """Each head from the change of its own z."""
        made = self.plan.made(self.plan.heads[layer])
        now = np.concatenate([places[one.made_of] + self._tokens(one.tokens) for one in made])
        change = z[self._put(self._queried(now, since))].sub_(
            self.ablated.z[layer].flatten(0, 2)[self._put(now % self._size)]
        )
        alike, start = defaultdict[int, list[tuple[int, list[WriterChange]]]](list), 0
        for _, group in groupby(made, key=lambda one: one.writer):
            versions = list(group)
            n_rows = sum(self.plan.sets.count(one.tokens) for one in versions)
            alike[n_rows].append((start, versions))
            start += n_rows
        for n_rows, of_heads in alike.items():
            for some in grouped(of_heads, lambda _, n=n_rows: n):
                heads = [self._head(versions[0].writer) for _, versions in some]
                rows = [change[first : first + n_rows] for first, _ in some]
                outputs = self.model.head_outputs(layer, self._columns(heads, rows), heads)[:, :, 0]
                yield from zip((versions for _, versions in some), outputs, strict=True)

    def _columns(
        self, heads: Sequence[int], vectors: Sequence[Float[Tensor, "token d_head"]]
    ) -> Float[Tensor, "token 1 head d_head"]:
        """A z with these heads' vectors in their columns; the others are not read."""
        if len(heads) == 1:
            return vectors[0][:, None, None].expand(-1, 1, self.model.spec.n_heads, -1)
        columns = vectors[0].new_zeros(len(vectors[0]), 1, self.model.spec.n_heads, vectors[0].shape[1])
        columns[:, 0, list(heads)] = torch.stack(list(vectors), 1)
        return columns

    def _joint_changes(
        self, layer: int, z: Float[Tensor, "_ d_head"], joint: Mapping[int, JointHeads], since: int
    ) -> Iterator[Changed]:
        """Heads that depend on each other, one combination a row of z: their outputs less those in the ablated run."""
        columns = np.arange(self.model.spec.n_heads)
        places = [
            self._queried(row * self._size + self._tokens(self.plan.tokens[number])[:, None] + columns, since)
            for row, number in enumerate(joint)
        ]
        first = dict(zip(joint, np.cumsum([0, *map(len, places)]).tolist(), strict=False))
        now, was = (
            self.model.head_outputs(layer, heads[:, None])[:, :, 0]
            for heads in (z[self._put(np.concatenate(places))], self.ablated.z[layer].flatten(0, 1))
        )
        for one in self.plan.made(self.plan.heads[layer]):
            head, tokens = self._head(one.writer), self.plan.sets.indices(one.tokens)
            row = first[one.made_of] + self.plan.sets.among(one.tokens, self.plan.tokens[one.made_of])
            yield [one], now[head, self._put(row)] - was[head, self._put(tokens)]

    @property
    def _size(self) -> int:
        """How many vectors z of one run has: tokens times heads."""
        return self.plan.sets.size * self.model.spec.n_heads

    def _queried(self, vectors: Int[np.ndarray, "*token"], since: int) -> Int[np.ndarray, "*token"]:
        """The places of vectors of whole prompts among those of the queries, from token `since` on."""
        whole = self.plan.sets.seq * self.model.spec.n_heads
        row, inside = np.divmod(vectors, whole)
        skipped = since * self.model.spec.n_heads
        return row * (whole - skipped) + inside - skipped

    def _tokens(self, tokens: int) -> Int[np.ndarray, " token"]:
        """The places of tokens in one head's column."""
        return self.plan.sets.indices(tokens) * self.model.spec.n_heads

    def _head(self, writer: int) -> int:
        head = Layout.of(self.model.spec).writers[writer].head
        assert head is not None
        return head

    def _put(self, index: Int[np.ndarray, "*token"]) -> Int[Tensor, "*token"]:
        return torch.from_numpy(index).to(self.ablated.resid_final.device)
