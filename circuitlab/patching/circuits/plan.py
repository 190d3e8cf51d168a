"""Plan circuit runs: what has to be computed, from what, and at which tokens.

The steps of a plan are streams, reads of a head's slot, heads, and **versions** of writers: a writer's output given
certain versions of the writers before it. Circuits that agree on everything upstream of a node share its version, and
it is computed once for all of them. A node whose input is unchanged has the output of the ablated run: it has no
version, or the one of its offset. The plan is made in two passes over the masks, without a model:

1. Forward: the steps, and the tokens at which each can differ from the ablated run. MLPs work token by token; a head
   differs where its query does, and where it attends to a token whose key or value does: from the first one on, in a
   bidirectional model everywhere.
2. Backward from the answer position: the tokens at which each step is needed.

A step is computed at the tokens where it can differ *and* is needed, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TypeVar

import numpy as np
from jaxtyping import Bool

from circuitlab.parts import Kind, Layout, Node, Slot
from circuitlab.patching.circuits.token_sets import TokenSets


@dataclass(frozen=True, slots=True)
class Stream:
    """What readers read: the ablated run's stream at their place, and what these versions add to it."""

    place: int
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """A head's q, k or v from a stream."""

    slot: Slot
    head: int
    stream: int


@dataclass(frozen=True, slots=True)
class HeadResult:
    """A head's z from its q, k and v; None where it reads nothing changed."""

    head: int
    reads: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class JointHeads:
    """All heads of a layer that share a post-norm; None for a head that is as in the ablated run."""

    heads: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ComputedWriter:
    """A writer's output, made of a stream (an MLP), of its z (a head) or of all heads of its layer (`JointHeads`)."""

    writer: int
    made_of: int


@dataclass(frozen=True, slots=True)
class UnchangedWriter:
    """A writer whose input is unchanged, and yet not its replacement: the input, or one with an offset."""

    writer: int


Step = Stream | Read | HeadResult | JointHeads | ComputedWriter | UnchangedWriter
AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True, slots=True)
class WriterChange:
    """A version, and the tokens at which it is made of something; at others only its offset differs."""

    number: int
    writer: int
    made_of: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run, in an order in which they can be taken.

    Attributes:
        sets: What the token sets are sets of.
        steps: All of them; they refer to each other by their number here.
        tokens: Where each is computed.
        heads: By layer, the steps that make its heads' versions.
        mlps: By layer, those that make its MLP's.
        final: Each circuit's stream at the logits.
    """

    sets: TokenSets
    steps: tuple[Step, ...]
    tokens: tuple[int, ...]
    heads: tuple[range, ...]
    mlps: tuple[range, ...]
    final: tuple[int, ...]

    def of(self, kind: type[AnyStep], part: range | None = None) -> dict[int, AnyStep]:
        """The steps of one kind that are computed anywhere, in one part of the plan or in all of it.

        Returns:
            Steps by layer.
        """
        numbers = range(len(self.steps)) if part is None else part
        found = ((n, self.steps[n]) for n in numbers if self.tokens[n])
        return {n: step for n, step in found if isinstance(step, kind)}

    def made(self, part: range) -> list[WriterChange]:
        """The versions of a part that are made of anything, writer by writer.

        Returns:
            The versions.
        """
        found = [
            WriterChange(number, step.writer, step.made_of, self.tokens[number] & self.tokens[step.made_of])
            for number, step in self.of(ComputedWriter, part).items()
        ]
        return sorted((made for made in found if made.tokens), key=lambda made: made.writer)


def plan_circuits(
    layout: Layout,
    masks: Bool[np.ndarray, "circuit writer reader"],
    sets: TokenSets,
    *,
    entering: int,
    answers: int,
    offsets: Mapping[int, int],
    heads_interact: Sequence[bool],
) -> Plan:
    """The plan of a run of several circuits on one batch.

    Args:
        layout: Numbers of writers and readers.
        masks: Kept edges, all of them edges of the model.
        sets: The batch's tokens.
        entering: Where the input differs from its replacement.
        answers: The answer position of each example.
        offsets: By writer, where its own output in the ablated run is not its replacement.
        heads_interact: By layer, whether what one head adds depends on the other heads (a post-norm).

    Returns:
        The steps, in an order in which they can be taken, and the tokens at which each is computed.
    """
    return _Forward(layout, masks, sets, {0: entering} | dict(sorted(offsets.items()))).plan(answers, heads_interact)


class _Forward:
    """The first pass: the steps, and where each can differ from the ablated run.

    Args:
        layout: Numbers of writers and readers.
        masks: Kept edges.
        sets: The batch's tokens.
        differs: By writer, the tokens at which it is not its replacement where its input is unchanged.
    """

    def __init__(
        self,
        layout: Layout,
        masks: Bool[np.ndarray, "circuit writer reader"],
        sets: TokenSets,
        differs: Mapping[int, int],
    ) -> None:
        self.layout, self.sets = layout, sets
        # By circuit and reader, the writers on kept edges. Most circuits agree on most readers.
        known: dict[tuple[int, bytes], tuple[int, ...]] = {}
        self.read_from: list[list[tuple[int, ...]]] = []
        for packed, mask in zip(np.packbits(masks, axis=1).transpose(0, 2, 1), masks, strict=True):
            keys = [(reader, column.tobytes()) for reader, column in enumerate(packed)]
            for key in keys:
                if key not in known:
                    known[key] = tuple(np.flatnonzero(mask[:, key[0]]).tolist())
            self.read_from.append([known[key] for key in keys])
        self.is_read = np.asarray(masks.any(2))
        # Equal steps are one step: this is where circuits share their work.
        self.numbers: dict[Step, int] = {}
        self.changed: list[int] = []
        self.offset_at = {writer: where for writer, where in differs.items() if writer > 0}
        unchanged = {writer: self.step(UnchangedWriter(writer), where) for writer, where in differs.items() if where}
        # By circuit, the versions of the writers so far; none where a writer is its replacement.
        self.versions = [dict(unchanged) for _ in masks]

    def plan(self, answers: int, heads_interact: Sequence[bool]) -> Plan:
        """All steps, and where each is computed."""
        heads, mlps = [], []
        for layer in range(self.layout.spec.n_layers):
            heads.append(self.heads(layer, heads_interact[layer]))
            mlps.append(self.mlp(layer))
        final = self.logits()
        steps = tuple(self.numbers)
        tokens = _computed(steps, self.changed, dict.fromkeys(final, answers), self.sets)
        return Plan(self.sets, steps, tokens, tuple(heads), tuple(mlps), final)

    def heads(self, layer: int, heads_interact: bool) -> range:
        """The versions of a layer's heads."""
        start, nodes = len(self.changed), [Node(Kind.HEAD, layer, head) for head in range(self.layout.spec.n_heads)]
        writers = [self.layout.writer_index(node) for node in nodes]
        columns = [self.layout.readers_of(node) for node in nodes]
        for circuit, versions in enumerate(self.versions):
            is_read = self.is_read[circuit, writers]
            if not is_read.any():
                continue
            # Where heads depend on each other, one that is not read counts too.
            results = [
                self._head(circuit, 2 * layer, head, columns[head]) if heads_interact or is_read[head] else None
                for head in range(len(nodes))
            ]
            if heads_interact and any(result is not None for result in results):
                everywhere = self._either(result for result in results if result is not None)
                # ... and where one head changes, the outputs of all do.
                results = [self.step(JointHeads(tuple(results)), everywhere)] * len(nodes)
            found = zip(writers, results, is_read, strict=True)
            versions |= {w: self._version(w, result) for w, result, read in found if read and result is not None}
        return range(start, len(self.changed))

    def mlp(self, layer: int) -> range:
        """The versions of a layer's MLP."""
        start = len(self.changed)
        if self.layout.spec.has_mlp:
            node = Node(Kind.MLP, layer)
            writer, (column,) = self.layout.writer_index(node), self.layout.readers_of(node)
            for circuit, versions in enumerate(self.versions):
                stream = self._stream(circuit, 2 * layer + 1, column) if self.is_read[circuit][writer] else None
                if stream is not None:
                    versions[writer] = self._version(writer, stream)
        return range(start, len(self.changed))

    def logits(self) -> tuple[int, ...]:
        """Each circuit's stream at the end; one without sources where no version is read."""
        place, column = 2 * self.layout.spec.n_layers, len(self.layout.readers) - 1
        streams = (self._stream(circuit, place, column) for circuit in range(len(self.versions)))
        return tuple(self.step(Stream(place, ()), 0) if stream is None else stream for stream in streams)

    def step(self, step: Step, changed: int) -> int:
        """The number of a step, an old one if it is there already."""
        number = self.numbers.setdefault(step, len(self.changed))
        if number == len(self.changed):
            self.changed.append(changed)
        return number

    def _stream(self, circuit: int, place: int, column: int) -> int | None:
        versions = self.versions[circuit]
        sources = tuple(versions[w] for w in self.read_from[circuit][column] if w in versions) if versions else ()
        return self.step(Stream(place, sources), self._either(sources)) if sources else None

    def _head(self, circuit: int, place: int, head: int, columns: Sequence[int]) -> int | None:
        reads: list[int | None] = []
        for slot, column in zip(Slot, columns, strict=True):
            stream = self._stream(circuit, place, column)
            reads.append(None if stream is None else self.step(Read(slot, head, stream), self.changed[stream]))
        if not any(read is not None for read in reads):
            return None
        q, k, v = (0 if read is None else self.changed[read] for read in reads)
        return self.step(HeadResult(head, tuple(reads)), q | self.sets.after(k | v))

    def _version(self, writer: int, made_of: int) -> int:
        return self.step(ComputedWriter(writer, made_of), self.changed[made_of] | self.offset_at.get(writer, 0))

    def _either(self, steps: Iterable[int]) -> int:
        return reduce(or_, (self.changed[number] for number in steps), 0)


def _computed(
    steps: Sequence[Step], changed: Sequence[int], needed: Mapping[int, int], sets: TokenSets
) -> tuple[int, ...]:
    """The second pass: where each step is computed, given where the last ones are needed."""
    tokens = [needed.get(number, 0) for number in range(len(steps))]
    for number in range(len(steps) - 1, -1, -1):
        tokens[number] &= changed[number]
        here = tokens[number]
        match steps[number]:
            case Stream(sources=before) | JointHeads(heads=before):
                wanted = here
            case Read(stream=before) | ComputedWriter(made_of=before):
                wanted, before = here, (before,)
            case HeadResult(reads=(q, *before)):
                if q is not None:
                    tokens[q] |= here
                wanted = sets.before(here)
        for earlier in before:
            if earlier is not None:
                tokens[earlier] |= wanted
    return tuple(tokens)
