"""What heads read and say in several circuits.

A head that hears nothing new and whose edges all circuits cut alike is kept for the circuits of later calls: a search
asks about the edges into one reader after another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.patching.cuts.attention import SLOTS, Attention, K, Q, V
from circuitlab.patching.cuts.setting import ANSWER, EVERYWHERE
from circuitlab.patching.cuts.sums import Streams, Sums, joined
from circuitlab.patching.cuts.variants import Variants


class Heads:
    """The heads of circuits on their way.

    Args:
        sums: The circuits; what heads say is added to what is said in them.
        streams: Where what they read is kept, for a state; None keeps nothing.

    Attributes:
        slots: Queries, keys and values that differ, by layer, slot and head.
        z: What differs of heads' z, by layer and head; kept for a state alone.
    """

    def __init__(self, sums: Sums, streams: dict[int, Variants] | None) -> None:
        self.sums, self.state, self.model = sums, sums.state, sums.setting.model
        self._streams = streams
        self.slots = dict[tuple[int, int, int], Variants]()
        self.z = dict[tuple[int, int], Variants]()
        self._attention = Attention(sums, self.slots)

    def speak(self, layer: int) -> None:
        """What a layer's heads say, where it differs."""
        moved, plain = self._moved(layer), self.model.is_standard_attention(layer)
        names = {} if self._streams is not None else self._names(layer, moved)
        rest = {head: slots for head, slots in moved.items() if not self._recalled(layer, head, slots, names)}
        mixed = [head for head in rest if plain and rest[head] == [V] and self.sums.need(layer, head) == ANSWER]
        readers = [(slot, head) for head in rest if head not in mixed for slot in rest[head]]
        for alike in self._alike(layer, [reader for reader in readers if (layer, *reader) not in self.slots]):
            self._read(layer, alike)
        for alike in self._alike(layer, [(V, head) for head in mixed]):
            self._mix(layer, [head for _, head in alike])
        unmixed = [head for head in rest if head not in mixed]
        for head, change in self._attention.changes(layer, unmixed):
            if self._streams is not None:
                self.z[layer, head] = Variants(self.state.z[layer][:, :, head] + change.values, change.of)
            self._says(layer, head, change)
        self._remember(layer, rest, names)

    def _moved(self, layer: int) -> dict[int, list[int]]:
        """The heads that are needed and may differ in some circuit, and which of their slots do."""
        needed = [head for head in range(self.model.spec.n_heads) if self.sums.need(layer, head)]
        slots = {head: [s for s in (Q, K, V) if self.sums.differs(self.sums.column(layer, s, head))] for head in needed}
        return {head: moved for head, moved in slots.items() if moved}

    def _names(self, layer: int, moved: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], tuple[object, ...]]:
        """By slot and head, what is read there where it hears nothing new and all circuits cut alike."""
        found = {}
        for head, slots in moved.items():
            for slot in slots:
                cut = self.sums.settled(self.sums.column(layer, slot, head))
                if cut is not None:
                    found[slot, head] = (layer, slot, head, self.sums.need(layer, head, slot), cut)
        return found

    def _recalled(self, layer: int, head: int, slots: Sequence[int], names: Mapping[tuple[int, int], tuple]) -> bool:
        """Take what is known from earlier circuits; whether that is all that the head says."""
        kept, of = self.state.kept, np.zeros(self.sums.n_circuits, dtype=np.int64)
        said = kept.get((head, self.sums.need(layer, head), *(names.get((slot, head)) for slot in slots)))
        if said is not None:
            self.sums.said[self.sums.places.heads[layer] + head] = Variants(said, of)
            return True
        for slot in slots:
            values = kept.get(names.get((slot, head)))
            if values is not None:
                self.slots[layer, slot, head] = Variants(values, of)
        return False

    def _remember(self, layer: int, moved: Mapping[int, Sequence[int]], names: Mapping[tuple[int, int], tuple]) -> None:
        """Keep for later circuits what hears nothing new and is cut alike."""
        for head, slots in moved.items():
            own = [names.get((slot, head)) for slot in slots]
            said = self.sums.said.get(self.sums.places.heads[layer] + head)
            if None not in own and said is not None:
                self.state.kept[head, self.sums.need(layer, head), *own] = said.values
            for slot, name in zip(slots, own, strict=True):
                if name is not None and name not in self.state.kept and (layer, slot, head) in self.slots:
                    self.state.kept[name] = self.slots[layer, slot, head].values

    def _alike(self, layer: int, readers: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Readers of the same stream in the same circuits, which share their sums."""
        found = defaultdict[tuple, list[tuple[int, int]]](list)
        for slot, head in readers:
            need, column = self.sums.need(layer, head, slot), self.sums.column(layer, slot, head)
            found[need, *self.sums.key(column)].append((slot, head))
        return list(found.values())

    def _read(self, layer: int, readers: Sequence[tuple[int, int]]) -> None:
        """Queries, keys and values from a stream that all of these read."""
        columns, (slot, head) = [self.sums.column(layer, slot, head) for slot, head in readers], readers[0]
        found = self.sums.read(columns[0], self.sums.need(layer, head, slot))
        if found is None:
            return
        parts = defaultdict[tuple[int, int], list[Tensor]](list)
        for x in self.sums.chunks(found):
            if self._streams is not None:
                self._streams |= {column: Variants(x.clone(), found.of) for column in columns}
            for reader, values in self._projected(layer, readers, x):
                parts[reader].append(values)
        self.slots |= {(layer, *reader): Variants(joined(values), found.of) for reader, values in parts.items()}

    def _projected(
        self, layer: int, readers: Sequence[tuple[int, int]], x: Streams
    ) -> Iterator[tuple[tuple[int, int], Float[Tensor, "variant batch here d_head"]]]:
        """One projection for every reader; all heads in one where most of them read this stream."""
        n_heads, rows = self.model.spec.n_heads, x.flatten(0, 1)
        for number, slot in enumerate(SLOTS):
            wanted = [head for one, head in readers if one == number]
            if 2 * len(wanted) >= n_heads > 1:
                (every,) = self.model.read_attention(layer, [slot], x.flatten(0, 2))
                for head in wanted:
                    values = every[:, head * every.shape[1] // n_heads].contiguous()
                    yield (number, head), values.view(*x.shape[:3], -1)
            elif wanted:
                each = self.model.project(layer, slot, wanted, rows.expand(len(wanted), *rows.shape))
                for head, values in zip(wanted, each, strict=True):
                    yield (number, head), values.view(*x.shape[:3], -1)

    def _mix(self, layer: int, heads: Sequence[int]) -> None:
        """What heads say at the answer that look where they looked, and whose values are read from the same stream.

        What they read is mixed first, and projected once, not at every token.
        """
        found = self.sums.read(self.sums.column(layer, V, heads[0]), EVERYWHERE)
        if found is None:
            return
        pattern, own = self._attention.mixture(layer, heads)
        mixed = joined([torch.matmul(pattern, self.model.attn_input(layer, x)) for x in self.sums.chunks(found)])
        mixed -= own
        for number, head in enumerate(heads):
            change = self.model.head_values(layer, head, mixed[:, :, number])
            self._says(layer, head, Variants(change[:, :, None], found.of))

    def _says(self, layer: int, head: int, change: Variants) -> None:
        """Take note of what a head says by how far its z is from the state's."""
        z = change.values
        columns = z.flatten(0, 1)[:, :, None].expand(-1, -1, self.model.spec.n_heads, -1)
        said = self.model.head_outputs(layer, columns, [head])[0].unflatten(0, z.shape[:2])
        self.sums.said[self.sums.places.heads[layer] + head] = Variants(said, change.of)
