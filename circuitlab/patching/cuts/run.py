"""Run circuits that cut more edges than one that has been run: what their new cuts change, and nothing else.

With x_v and a_u as they are in the circuit that was run (`CutState`), a reader's input in another is

    x_v + sum over newly cut u -> v of (r_u - a_u) + sum over kept u -> v of (how far the writer u is from a_u)

Questions of a search (ACDC) cut edges into one node after another from the logits backwards: then the first sum is over
writers that are clean, and the second over those few that stand between that node and the reader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.parts import Layout, Slot
from circuitlab.patching.cuts.setting import ANSWER, EVERYWHERE, NOWHERE, Places, Setting, needed_at
from circuitlab.patching.cuts.state import CutState
from circuitlab.patching.cuts.variants import SAME, Variants, add_up, distinct, runs

# Tokens that go from a sum through norm and projection together. Calls cost more than what the cache misses: half as
# many were slower on the 4-layer model of the benchmark, twice as many about the same.
TOKENS_AT_ONCE = 8192
SLOTS = tuple(Slot)
Streams = Float[Tensor, "variant batch token d_model"]


class CutRun:
    """Circuits on their way.

    Args:
        setting: The batch.
        state: The circuit they are run from.
        masks: Kept edges, all of them kept in that circuit.
        everywhere: Compute what is needed at all tokens, also where the answer alone needs it.
    """

    def __init__(
        self,
        setting: Setting,
        state: CutState,
        masks: Bool[np.ndarray, "circuit writer reader"],
        *,
        everywhere: bool = False,
    ) -> None:
        self.setting, self.state, self.model = setting, state, setting.model
        self.layout = Layout.of(self.model.spec)
        self.places = Places.of(self.layout)
        differs = setting.differs.copy()
        differs[list(state.apart)] = True
        self.kept, self.new = masks, (state.mask & ~masks) & differs[:, None]
        self.kept_by_any, self.new_in_any = np.asarray(masks.any(0)), np.asarray(self.new.any(0))
        self.needed = needed_at(self.layout, self.kept_by_any)
        if everywhere:
            self.needed = np.where(self.needed, EVERYWHERE, NOWHERE)
        # How far writers are from what they say in the state.
        self.said = dict[int, Variants]()
        self._at_answer = dict[int, Tensor]()
        # What readers read, where it differs; kept for a state alone.
        self.streams = dict[int, Variants]() if everywhere else None
        self.slots = dict[tuple[int, int, int], Variants]()
        self.z = dict[tuple[int, int], Variants]()

    def finished(self) -> Float[Tensor, "circuit batch d_model"]:
        """Take all steps; what the logits read at the answer position."""
        for layer in range(self.model.spec.n_layers):
            self.heads(layer)
            if self.model.spec.has_mlp:
                self.mlp(layer)
        column = len(self.layout.readers) - 1
        own = self.state.streams[column][:, 0]
        out = own.repeat(len(self.kept), 1, 1)
        found = self.through([column], ANSWER, lambda x, out: out[0].copy_(x), [self.model.spec.d_model], "final")
        if found is not None:
            for places, which in runs(found[0].of):
                out[places] = found[0].values[which, :, 0]
        return out

    def mlp(self, layer: int) -> None:
        """What a layer's MLP says."""
        writer, column = self.places.mlps[layer]
        need = int(self.needed[writer])
        own = self.at(need, self.state.mlps[layer][None])[0]
        if need:
            found = self.through(
                [column],
                need,
                lambda x, out: torch.sub(self.model.mlp_output(layer, x), own, out=out[0]),
                [self.model.spec.d_model],
                ("said", writer),
            )
            if found is not None:
                self.said[writer] = found[0]

    def at(self, need: int, values: Float[Tensor, "variant batch token _"]) -> Float[Tensor, "variant batch here _"]:
        """Values at the tokens where they are needed, of all tokens that can differ."""
        return self.setting.answers(values, self.setting.since) if need == ANSWER else values

    def heads(self, layer: int) -> None:
        """What a layer's heads say."""
        first = self.places.heads[layer]
        heads = [head for head in range(self.model.spec.n_heads) if self.needed[first + head]]
        wanted = defaultdict[tuple, list[tuple[int, int]]](list)
        for head in heads:
            for number in range(len(SLOTS)):
                need = int(self.needed[first + head]) if number == 0 else EVERYWHERE
                column = int(self.places.slots[layer, number, head])
                heard, cut = self.parts(column)
                if heard or len(cut):
                    # Readers of the same stream in the same circuits share their sums.
                    same = (self.kept[:, heard, column].tobytes(), self.new[:, cut, column].tobytes())
                    which = (id(self.state.streams[column]), need, tuple(heard), cut.tobytes(), *same)
                    wanted[which].append((number, head))
        for (_, need, *_), readers in wanted.items():
            self.read(layer, need, readers)
        self.attend(layer, first, heads)

    def read(self, layer: int, need: int, readers: Sequence[tuple[int, int]]) -> None:
        """Queries, keys and values from a stream that all of these read."""
        columns = [int(self.places.slots[layer, slot, head]) for slot, head in readers]
        found = self.through(
            columns,
            need,
            lambda x, out: self._project(layer, readers, x, out),
            [self.model.spec.d_head] * len(readers),
            ("read", layer, readers[0]),
        )
        if found is not None:
            self.slots |= {(layer, *reader): one for reader, one in zip(readers, found, strict=True)}

    def _project(self, layer: int, readers: Sequence[tuple[int, int]], x: Streams, out: Sequence[Tensor]) -> None:
        """One projection for every reader; all heads in one where most of them read this stream."""
        n_heads, rows = self.model.spec.n_heads, x.flatten(0, 1)
        for number, slot in enumerate(SLOTS):
            wanted = [(head, part) for (one, head), part in zip(readers, out, strict=True) if one == number]
            if 2 * len(wanted) >= n_heads > 1:
                (every,) = self.model.read_attention(layer, [slot], x.flatten(0, 2))
                for head, part in wanted:
                    part.copy_(every[:, head * every.shape[1] // n_heads].view(part.shape))
            elif wanted:
                each = self.model.project(layer, slot, [h for h, _ in wanted], rows.expand(len(wanted), *rows.shape))
                for one, (_, part) in zip(each, wanted, strict=True):
                    part.copy_(one.view(part.shape))

    def attend(self, layer: int, first: int, heads: Sequence[int]) -> None:
        """The z of the heads whose queries, keys or values differ, and what they say by it."""
        same = np.full(len(self.kept), SAME)
        alike = defaultdict[tuple, list[int]](list)
        keys = dict[tuple, tuple[np.ndarray, np.ndarray]]()
        for head in heads:
            found = [self.slots.get((layer, slot, head)) for slot in range(3)]
            of, circuits = distinct(np.stack([same if one is None else one.of for one in found], 1))
            if len(circuits):
                key = (of.tobytes(), int(self.needed[first + head]))
                keys[key] = of, circuits
                alike[key].append(head)
        for key, together in alike.items():
            of, circuits = keys[key]
            z = self._attended(layer, together, circuits, key[1])
            own = self.at(key[1], self.state.z[layer].flatten(2)[None])[0].unflatten(2, (self.model.spec.n_heads, -1))
            for number, head in enumerate(together):
                change = z[:, :, :, number] - own[:, :, head]
                if self.streams is not None:
                    self.z[layer, head] = Variants(z[:, :, :, number], of)
                self.said[first + head] = Variants(self._output(layer, head, change), of)

    def _output(self, layer: int, head: int, z: Float[Tensor, "variant batch token d_head"]) -> Streams:
        columns = z.flatten(0, 1)[:, :, None].expand(-1, -1, self.model.spec.n_heads, -1)
        return self.model.head_outputs(layer, columns, [head])[0].unflatten(0, z.shape[:2])

    def _attended(
        self, layer: int, heads: Sequence[int], circuits: Int[np.ndarray, " variant"], need: int
    ) -> Float[Tensor, "variant batch token head d_head"]:
        """The z of some heads in some circuits, at the tokens where it is needed."""
        columns = heads if self.model.attends_plainly(layer) else range(self.model.spec.n_heads)
        n_tokens = self.setting.replaced.shape[2] + self.setting.since
        # Queries of the last tokens, beginning with the first that is asked for.
        asking = n_tokens - (int(self.setting.answer_at.min()) if need == ANSWER else self.setting.since)
        q, k, v = (
            self._arranged(layer, slot, columns, circuits, n_tokens if slot else asking, need) for slot in range(3)
        )
        z = self.model.attend(layer, q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), self.setting.frame)
        z = z.unflatten(0, q.shape[:2])
        if columns is not heads:
            z = z[:, :, :, list(heads)]
        if need == ANSWER:
            return self.setting.answers(z.flatten(3), n_tokens - asking).unflatten(3, z.shape[3:])
        return z

    def _arranged(
        self,
        layer: int,
        slot: int,
        heads: Sequence[int],
        circuits: Int[np.ndarray, " variant"],
        n_tokens: int,
        need: int,
    ) -> Float[Tensor, "variant batch token head d_head"]:
        """What attention is called with in one slot, at the last tokens."""
        own = self.state.slots[layer][slot][:, -n_tokens:]
        shape = (len(circuits), own.shape[0], n_tokens, len(heads), own.shape[3])
        out = self.setting.memory(("slot", slot), *shape)
        for number, head in enumerate(heads):
            here, found = out[:, :, :, number], self.slots.get((layer, slot, head))
            index = None if found is None else found.of[circuits]
            there = 0 if index is None or found is None or (index == SAME).any() else found.values.shape[2]
            if there < n_tokens:
                here[:, :, : n_tokens - there] = own[:, : n_tokens - there, head]
            if found is None or index is None:
                continue
            for places, which in runs(index):
                if slot == 0 and need == ANSWER and n_tokens > 1:
                    rows = torch.arange(own.shape[0], device=own.device)
                    here[places][:, rows, self.setting.answer_at - self.setting.answer_at.min()] = found.values[which][
                        :, :, 0
                    ]
                else:
                    here[places, :, -found.values.shape[2] :] = found.values[which]
        return out

    def parts(self, column: int) -> tuple[list[int], Int[np.ndarray, " writer"]]:
        """What differs at a reader in any circuit: kept writers that say something else, and writers newly cut."""
        kept = self.kept_by_any[:, column]
        return [writer for writer in self.said if kept[writer]], np.flatnonzero(self.new_in_any[:, column])

    def through(
        self,
        columns: Sequence[int],
        need: int,
        function: Callable[[Streams, Sequence[Tensor]], object],
        widths: Sequence[int],
        name: object,
    ) -> list[Variants] | None:
        """What a function makes of the stream that readers have in common; None where no circuit changes it."""
        column = columns[0]
        heard, cut = self.parts(column)
        index = [np.where(self.kept[:, writer, column], self.said[writer].of, SAME) for writer in heard]
        new = self.new[:, cut, column]
        of, circuits = distinct(np.concatenate([np.stack(index, 1), new - 1], 1) if index else new - 1)
        if not len(circuits):
            return None
        base = self.state.streams[column]
        if column < len(self.layout.readers) - 1:
            base = self.at(need, base[None])[0]
        parts = [(self._spoken(writer, need), which[circuits]) for writer, which in zip(heard, index, strict=True)]
        if len(cut):
            parts.append((self._cut(cut, new[circuits], need), np.arange(len(circuits))))
        shape = (len(circuits), *base.shape[:2])
        out = [self.setting.memory((name, number), *shape, width) for number, width in enumerate(widths)]
        step = max(1, TOKENS_AT_ONCE // (shape[1] * shape[2]))
        for start in range(0, len(circuits), step):
            chunk = slice(start, min(start + step, len(circuits)))
            x = self.setting.memory("stream", chunk.stop - start, *base.shape)
            add_up(x, base, [(values, index[chunk]) for values, index in parts])
            if self.streams is not None:
                self.streams |= {column: Variants(x.clone(), of) for column in columns}
            function(x, [whole[chunk] for whole in out])
        return [Variants(values, of) for values in out]

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
