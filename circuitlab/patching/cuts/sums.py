"""What readers read in several circuits: what differs from the circuit that they are run from, added up.

With x_v and a_u as they are in the circuit that was run (`CutState`), a reader's input in another is

    x_v + sum over newly cut u -> v of (r_u - a_u) + sum over kept u -> v of (how far the writer u is from a_u)

Questions of a search (ACDC) cut edges into one node after another from the logits backwards: then the first sum is over
writers that are clean, and the second over those few that stand between that node and the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.patching.cuts.setting import ANSWER, EVERYWHERE, NOWHERE, Setting, needed_at
from circuitlab.patching.cuts.state import CutState
from circuitlab.patching.cuts.variants import SAME, Variants, add_up, distinct

# Tokens that go from a sum through norm and projection together. Calls cost more than what the cache misses: half as
# many were slower on the 4-layer model of the benchmark.
TOKENS_AT_ONCE = 16384
Streams = Float[Tensor, "variant batch token d_model"]
Part = tuple[Float[Tensor, "_ batch token d_model"], Int[np.ndarray, " variant"]]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """What a reader reads, where any circuit changes it.

    Attributes:
        of: By circuit, the number of its variant, or `SAME`.
        base: What all variants have in common.
        parts: What is added to that, with the one that each variant takes.
    """

    of: Int[np.ndarray, " circuit"]
    base: Float[Tensor, "batch token d_model"]
    parts: list[Part]

    @property
    def n_variants(self) -> int:
        """How many there are."""
        return int(self.of.max()) + 1


class Sums:
    """Circuits on their way, and what has been said in them.

    Args:
        setting: The batch.
        state: The circuit they are run from.
        masks: Kept edges, all of them kept in that circuit.
        everywhere: Compute what is needed at all tokens, also where the answer alone needs it.

    Attributes:
        said: How far writers are from what they say in the state, by their numbers.
        needed: Where each of them is needed.
    """

    def __init__(
        self,
        setting: Setting,
        state: CutState,
        masks: Bool[np.ndarray, "circuit writer reader"],
        *,
        everywhere: bool = False,
    ) -> None:
        self.setting, self.state, self.n_circuits, self.everywhere = setting, state, len(masks), everywhere
        self.places, self._logits = setting.places, len(setting.layout.readers) - 1
        differs = setting.differs.copy()
        differs[list(state.apart)] = True
        self._kept, self._new = masks, (state.mask & ~masks) & differs[:, None]
        self._kept_by_any, self._new_in_any = np.asarray(masks.any(0)), np.asarray(self._new.any(0))
        self.needed = needed_at(self.places, self._kept_by_any)
        if everywhere:
            self.needed = np.where(self.needed, EVERYWHERE, NOWHERE)
        self.said = dict[int, Variants]()
        self._at_answer = dict[int, Tensor]()
        self._differing = dict[int, tuple[list[int], Int[np.ndarray, " writer"]]]()

    def at(self, need: int, values: Float[Tensor, "variant batch token _"]) -> Float[Tensor, "variant batch here _"]:
        """Values at the tokens where they are needed, of all tokens that can differ."""
        return self.setting.answers(values, self.setting.since) if need == ANSWER else values

    def need(self, layer: int, head: int, slot: int = 0) -> int:
        """Where a reader is needed; keys and values are at every token, whose number is not 0."""
        return EVERYWHERE if slot else int(self.needed[self.places.heads[layer] + head])

    def column(self, layer: int, slot: int, head: int) -> int:
        """The number of a head's reader."""
        return int(self.places.slots[layer, slot, head])

    def differs(self, column: int) -> bool:
        """Whether a reader may read something else in any circuit."""
        heard, cut = self._parts(column)
        return bool(heard) or len(cut) > 0

    def key(self, column: int) -> tuple[object, ...]:
        """Equal for readers of the same sum."""
        heard, cut = self._parts(column)
        same = self._kept[:, heard, column].tobytes(), self._new[:, cut, column].tobytes()
        return (id(self.state.streams[column]), tuple(heard), cut.tobytes(), *same)

    def read(self, column: int, need: int) -> Sum | None:
        """What a reader reads; None where no circuit changes it."""
        heard, cut = self._parts(column)
        index = [np.where(self._kept[:, writer, column], self.said[writer].of, SAME) for writer in heard]
        new = self._new[:, cut, column]
        of, circuits = distinct(np.concatenate([np.stack(index, 1), new - 1], 1) if index else new - 1)
        if not len(circuits):
            return None
        base = self.state.streams[column]
        if column < self._logits:
            base = self.at(need, base[None])[0]
        parts = [(self._spoken(writer, need), which[circuits]) for writer, which in zip(heard, index, strict=True)]
        if len(cut):
            cuts, first = distinct(new[circuits] - 1)
            parts.append((self._cut(cut, new[circuits[first]], need), cuts))
        varying = list[Part]()
        for values, which in parts:
            if (which == which[0]).all():
                # In all of them alike: added once.
                base = base + values[which[0]] if which[0] != SAME else base
            else:
                varying.append((values, which))
        return Sum(of, base, varying)

    def settled(self, column: int) -> bytes | None:
        """A name for what a reader reads that hears nothing new and that all circuits cut alike; None for others."""
        heard, cut = self._parts(column)
        new = self._new[:, cut, column]
        if heard or not len(cut) or not (new == new[0]).all():
            return None
        return cut[new[0]].tobytes()

    def chunks(self, found: Sum) -> Iterator[Streams]:
        """Its variants, some at a time; each is overwritten by the next."""
        n_variants, rows = found.n_variants, found.base.shape[0] * found.base.shape[1]
        step = max(1, TOKENS_AT_ONCE // rows)
        for start in range(0, n_variants, step):
            chunk = slice(start, min(start + step, n_variants))
            x = self.setting.memory("stream", chunk.stop - start, *found.base.shape)
            add_up(x, found.base, [(values, index[chunk]) for values, index in found.parts])
            yield x

    def _parts(self, column: int) -> tuple[list[int], Int[np.ndarray, " writer"]]:
        """What differs at a reader in any circuit: kept writers that say something else, and writers newly cut.

        To be asked for when all that it may hear has been said.
        """
        if column not in self._differing:
            kept, new = self._kept_by_any[:, column], self._new_in_any[:, column]
            self._differing[column] = [writer for writer in self.said if kept[writer]], np.flatnonzero(new)
        return self._differing[column]

    def _spoken(self, writer: int, need: int) -> Streams:
        """How far a writer's variants are from what it says in the state, where they are needed."""
        values = self.said[writer].values
        if need != ANSWER or self.needed[writer] == ANSWER:
            return values
        if writer not in self._at_answer:
            self._at_answer[writer] = self.at(ANSWER, values)
        return self._at_answer[writer]

    def _cut(self, writers: Int[np.ndarray, " writer"], new: Bool[np.ndarray, "variant writer"], need: int) -> Streams:
        """What new cuts of these writers add to each variant."""
        first, last = int(writers[0]), int(writers[-1]) + 1
        replaced = self.at(need, self.setting.replaced[first:last])
        chosen = np.zeros((len(new), last - first), dtype=np.float64)
        chosen[:, writers - first] = new
        out = self.setting.memory("cut", len(new), *replaced.shape[1:])
        torch.mm(torch.from_numpy(chosen).to(replaced), replaced.flatten(1), out=out.flatten(1))
        for number, writer in enumerate(writers.tolist()):
            if writer in self.state.apart:
                apart = self.at(need, self.state.apart[writer][None])[0]
                out[torch.from_numpy(new[:, number]).to(out.device)] -= apart
        return out


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What is made of the chunks of a sum; that of a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
