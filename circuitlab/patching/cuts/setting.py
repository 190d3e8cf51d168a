"""What runs of circuits on one batch have in common: what replaces writers, where things stand, memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.parts import Kind, Layout, Node, Reader, Slot

# Where a writer or reader is needed: not at all, at the answer position, at every token that can differ.
NOWHERE, ANSWER, EVERYWHERE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Places:
    """Numbers of a model's readers and writers by layer.

    Attributes:
        slots: By layer, slot and head, the reader's number.
        heads: By layer, the number of its first head as a writer.
        mlps: By layer, the numbers of its MLP as a writer and as a reader.
        reads: By node, the readers through which it reads at the tokens where it is needed, and those at all tokens.
    """

    slots: Int[np.ndarray, "layer slot head"]
    heads: tuple[int, ...]
    mlps: tuple[tuple[int, int], ...]
    reads: tuple[tuple[list[int], list[int]], ...]

    @staticmethod
    def of(layout: Layout) -> Places:
        """Those of a layout."""
        spec, layers = layout.spec, range(layout.spec.n_layers)
        slots = [
            [
                [layout.reader_index(Reader(Node(Kind.HEAD, layer, head), slot)) for head in range(spec.n_heads)]
                for slot in Slot
            ]
            for layer in layers
        ]
        mlps = [Node(Kind.MLP, layer) for layer in layers if spec.has_mlp]
        by_node = [[(column, layout.readers[column].slot) for column in layout.readers_of(n)] for n in layout.nodes]
        return Places(
            slots=np.array(slots),
            heads=tuple(layout.writer_index(Node(Kind.HEAD, layer, 0)) for layer in layers),
            mlps=tuple((layout.writer_index(node), layout.reader_index(Reader(node))) for node in mlps),
            reads=tuple(
                (
                    [c for c, slot in found if slot in (None, Slot.Q)],
                    [c for c, slot in found if slot in (Slot.K, Slot.V)],
                )
                for found in by_node
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """What all runs on one batch have in common.

    Attributes:
        model: The model.
        layout: Its readers and writers.
        places: Their numbers, by layer.
        arguments: What its blocks are called with.
        replaced: How far each writer's replacement is from what it says in the clean run, from token `since` on.
        differs: Whether it is, by writer.
        since: The first token that can differ.
        answer_at: The answer position of each example.
        sees: By where something is needed, the tokens that a causal model's tokens there see; nothing for `NOWHERE`.
        room: Memory of earlier runs, by what it held: new memory costs a CPU more than the sums written into it.
    """

    model: Model
    layout: Layout
    places: Places
    arguments: BlockArguments
    replaced: Float[Tensor, "writer batch token d_model"]
    differs: Bool[np.ndarray, " writer"]
    since: int
    answer_at: Int[Tensor, " batch"]
    sees: tuple[Bool[Tensor, "_ _ seq"], ...]
    room: dict[object, Tensor]

    def memory(self, name: object, *shape: int) -> Tensor:
        """A tensor to write into; the same memory for every call with this name."""
        size = prod(shape)
        there = self.room.get(name)
        if there is None or there.numel() < size:
            there = self.room[name] = self.replaced.new_empty(size)
        return there[:size].view(shape)

    def answers(self, values: Float[Tensor, "variant batch token _"], first: int) -> Float[Tensor, "variant batch 1 _"]:
        """Values at the answer positions, of values from token `first` on."""
        n_tokens = values.shape[2]
        if bool((self.answer_at == first + n_tokens - 1).all()):
            return values[:, :, -1:]
        rows = torch.arange(len(self.answer_at), device=values.device)
        return values[:, rows, self.answer_at - first][:, :, None]


def sees(batch: PairBatch, since: int) -> tuple[Bool[Tensor, "_ _ seq"], ...]:
    """What tokens of a causal model see, by where they are needed: the answer positions, and all from `since` on."""
    token = torch.arange(batch.n_tokens, device=batch.answer_at.device)
    at_answer = token <= batch.answer_at[:, None, None]
    return at_answer[:0], at_answer, (token <= token[since:, None])[None]


def needed_at(places: Places, kept: Bool[np.ndarray, "writer reader"]) -> Int[np.ndarray, " node"]:
    """Where each writer is needed, from the answer backwards."""
    needed = np.zeros(len(kept) + 1, dtype=np.int64)
    needed[-1] = ANSWER
    writers = needed[:-1]
    for node in range(len(kept), 0, -1):
        if needed[node]:
            asking, seen = places.reads[node]
            np.maximum(writers, needed[node] * kept[:, asking].any(1), out=writers)
            np.maximum(writers, EVERYWHERE * kept[:, seen].any(1), out=writers)
    return needed
