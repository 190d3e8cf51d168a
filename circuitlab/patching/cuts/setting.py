"""What runs of circuits on one batch have in common: what replaces writers, where things stand, memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.models.protocol import Frame, Model
from circuitlab.parts import Kind, Layout, Node, Reader, Slot

# Where a writer or reader is needed: not at all, at the answer position, at every token that can differ.
NOWHERE, ANSWER, EVERYWHERE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """What all runs on one batch have in common.

    Attributes:
        model: The model.
        frame: What its blocks are called with.
        replaced: How far each writer's replacement is from what it says in the clean run, from token `since` on.
        differs: Whether it is, by writer.
        since: The first token that can differ.
        answer_at: The answer position of each example.
        room: Memory of earlier runs, by what it held: new memory costs a CPU more than the sums written into it.
    """

    model: Model
    frame: Frame
    replaced: Float[Tensor, "writer batch token d_model"]
    differs: Bool[np.ndarray, " writer"]
    since: int
    answer_at: Int[Tensor, " batch"]
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


@dataclass(frozen=True, slots=True)
class Places:
    """Numbers of a model's readers and writers by layer.

    Attributes:
        slots: By layer, slot and head, the reader's number.
        heads: By layer, the number of its first head as a writer.
        mlps: By layer, the numbers of its MLP as a writer and as a reader.
    """

    slots: Int[np.ndarray, "layer slot head"]
    heads: tuple[int, ...]
    mlps: tuple[tuple[int, int], ...]

    @staticmethod
    @lru_cache(maxsize=16)
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
        return Places(
            slots=np.array(slots),
            heads=tuple(layout.writer_index(Node(Kind.HEAD, layer, 0)) for layer in layers),
            mlps=tuple((layout.writer_index(node), layout.reader_index(Reader(node))) for node in mlps),
        )


def needed_at(layout: Layout, kept: Bool[np.ndarray, "writer reader"]) -> Int[np.ndarray, " node"]:
    """Where each writer is needed, from the answer backwards."""
    needed = np.zeros(len(layout.writers) + 1, dtype=np.int64)
    needed[-1] = ANSWER
    for number in range(len(layout.nodes) - 1, 0, -1):
        node = layout.nodes[number]
        for column in layout.readers_of(node) if needed[number] else ():
            slot = layout.readers[column].slot
            here = needed[number] if slot in (None, Slot.Q) else EVERYWHERE
            needed[: len(kept)][kept[:, column]] = np.maximum(needed[: len(kept)][kept[:, column]], here)
    return needed
