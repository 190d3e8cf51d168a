"""The z of heads in several circuits, from their queries, keys and values.

A head whose queries and keys are those of the circuit that was run looks where it looked there: its z is a fixed
mixture of its values, and how far it is from that circuit's is the mixture of how far they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.steps import attend
from circuitlab.parts import Slot
from circuitlab.patching.cuts.setting import ANSWER, EVERYWHERE
from circuitlab.patching.cuts.sums import Sums
from circuitlab.patching.cuts.variants import SAME, Variants, distinct, runs, taken

SLOTS = tuple(Slot)
Q, K, V = range(3)


class Attention:
    """The attention of circuits on their way.

    Args:
        sums: The circuits.
        slots: Queries, keys and values that differ, by layer, slot and head; filled in as they are read.
    """

    def __init__(self, sums: Sums, slots: Mapping[tuple[int, int, int], Variants]) -> None:
        self.sums, self.setting, self.state, self.model = sums, sums.setting, sums.state, sums.setting.model
        self.slots = slots

    def changes(self, layer: int, heads: Sequence[int]) -> Iterator[tuple[int, Variants]]:
        """How far heads' z is from the state's, where any of their slots differs."""
        if not self.model.is_standard_attention(layer):
            yield from self._by_the_model(layer, heads)
            return
        for head in heads:
            of, circuits = self._variants(layer, head)
            if len(circuits):
                yield head, Variants(self._plain_change(layer, head, circuits), of)

    def mixture(
        self, layer: int, heads: Sequence[int]
    ) -> tuple[Float[Tensor, "batch head token"], Float[Tensor, "batch head d_model"]]:
        """Where heads look from the answer in the state, and the mixture of what they read there: one stream."""
        name = ("mixture", layer, *heads)
        if name not in self.state.kept:
            pattern = torch.cat([self._pattern(layer, head, ANSWER) for head in heads], 1)
            stream = self.state.streams[self.sums.column(layer, V, heads[0])]
            self.state.kept[name] = torch.matmul(pattern, self.model.attn_input(layer, stream))
            self.state.kept["pattern", *name] = pattern
        return self.state.kept["pattern", *name], self.state.kept[name]

    def _plain_change(
        self, layer: int, head: int, circuits: Int[np.ndarray, " variant"]
    ) -> Float[Tensor, "_ batch here d_head"]:
        """Where attention is a softmax of scaled scores; slots that do not differ are not copied."""
        need = self.sums.need(layer, head)
        if not any((layer, slot, head) in self.slots for slot in (Q, K)):
            apart = taken(self.slots[layer, V, head], circuits) - self._own(layer, V, head)
            return torch.matmul(self._pattern(layer, head, need), apart)
        q = self._taken(layer, Q, head, circuits, need)
        k, v = (self._at_all_tokens(layer, slot, head, circuits) for slot in (K, V))
        scores = torch.matmul(q, k.transpose(-1, -2))
        z = torch.matmul(self.model.attention_pattern(layer, scores, self.setting.sees[need]), v)
        return z - self.sums.at(need, self.state.z[layer][None, :, :, head])

    def _own(self, layer: int, slot: int, head: int) -> Float[Tensor, "batch token d_head"]:
        """Queries, keys or values in the state, of the tokens that can differ."""
        return self.state.slots[layer][slot][:, self.setting.since :, head]

    def _pattern(self, layer: int, head: int, need: int) -> Float[Tensor, "batch here token"]:
        """Where a head looks in the state, among the tokens that can differ."""
        since = self.setting.since
        if layer not in self.state.patterns:
            q, k, _ = (values.transpose(1, 2) for values in self.state.slots[layer])
            scores = torch.matmul(q[:, :, since:], k.transpose(2, 3))
            pattern = self.model.attention_pattern(layer, scores, self.setting.sees[EVERYWHERE])
            self.state.patterns[layer] = pattern[..., since:].contiguous()
        return self.sums.at(need, self.state.patterns[layer][None, :, head])[0]

    def _at_all_tokens(
        self, layer: int, slot: int, head: int, circuits: Int[np.ndarray, " variant"]
    ) -> Float[Tensor, "_ batch seq d_head"]:
        """Keys or values in some circuits, with those of the tokens that cannot differ."""
        own = self.state.slots[layer][slot][None, :, :, head]
        if (layer, slot, head) not in self.slots:
            return own
        late = self._taken(layer, slot, head, circuits, EVERYWHERE)
        return torch.cat([own[:, :, : self.setting.since].expand(len(late), -1, -1, -1), late], 2)

    def _taken(
        self, layer: int, slot: int, head: int, circuits: Int[np.ndarray, " variant"], need: int
    ) -> Float[Tensor, "_ batch here d_head"]:
        """Queries, keys or values in some circuits, one for all of them where they do not differ."""
        own, found = self._own(layer, slot, head)[None], self.slots.get((layer, slot, head))
        own = self.sums.at(need, own)
        return own if found is None else taken(found, circuits, own)

    def _variants(self, layer: int, head: int) -> tuple[Int[np.ndarray, " circuit"], Int[np.ndarray, " variant"]]:
        """The variants of a head's queries, keys and values together: of every circuit, and the first of each."""
        same = np.full(self.sums.n_circuits, SAME)
        found = [self.slots.get((layer, slot, head)) for slot in (Q, K, V)]
        return distinct(np.stack([same if one is None else one.of for one in found], 1))

    def _by_the_model(self, layer: int, heads: Sequence[int]) -> Iterator[tuple[int, Variants]]:
        """By the model's own attention; heads that differ in the same circuits share a call."""
        n_heads = self.model.spec.n_heads
        alike = defaultdict[tuple[bytes, int], list[int]](list)
        found = {head: self._variants(layer, head) for head in heads}
        for head, (of, circuits) in found.items():
            if len(circuits):
                alike[of.tobytes(), self.sums.need(layer, head)].append(head)
        for (_, need), together in alike.items():
            of, circuits = found[together[0]]
            z = self._attended(layer, together, circuits, need)
            own = self.sums.at(need, self.state.z[layer].flatten(2)[None])[0].unflatten(2, (n_heads, -1))
            for number, head in enumerate(together):
                yield head, Variants(z[:, :, :, number] - own[:, :, head], of)

    def _attended(
        self, layer: int, heads: Sequence[int], circuits: Int[np.ndarray, " variant"], need: int
    ) -> Float[Tensor, "variant batch here head d_head"]:
        """The z of some heads in some circuits, at the tokens where it is needed."""
        n_tokens = self.setting.replaced.shape[2] + self.setting.since
        # Queries of the last tokens, beginning with the first that is asked for.
        asking = n_tokens - (int(self.setting.answer_at.min()) if need == ANSWER else self.setting.since)
        q, k, v = (self._arranged(layer, slot, circuits, n_tokens if slot else asking, need) for slot in (Q, K, V))
        inputs = {slot: values.flatten(0, 1) for slot, values in zip(Slot, (q, k, v), strict=True)}
        z = attend(self.model, layer, inputs, self.setting.arguments)
        z = z.unflatten(0, q.shape[:2])[:, :, :, list(heads)]
        if need == ANSWER:
            return self.setting.answers(z.flatten(3), n_tokens - asking).unflatten(3, z.shape[3:])
        return z

    def _arranged(
        self, layer: int, slot: int, circuits: Int[np.ndarray, " variant"], n_tokens: int, need: int
    ) -> Float[Tensor, "variant batch here head d_head"]:
        """What attention is called with in one slot, at the last tokens."""
        own = self.state.slots[layer][slot][:, -n_tokens:]
        out = self.setting.memory(("slot", slot), len(circuits), *own.shape)
        for head in range(self.model.spec.n_heads):
            here, found = out[:, :, :, head], self.slots.get((layer, slot, head))
            index = None if found is None else found.of[circuits]
            there = 0 if index is None or found is None or (index == SAME).any() else found.values.shape[2]
            if there < n_tokens:
                here[:, :, : n_tokens - there] = own[:, : n_tokens - there, head]
            if found is None or index is None:
                continue
            for places, which in runs(index):
                if slot == Q and need == ANSWER and n_tokens > 1:
                    rows = torch.arange(own.shape[0], device=own.device)
                    at = self.setting.answer_at - self.setting.answer_at.min()
                    here[places][:, rows, at] = found.values[which][:, :, 0]
                else:
                    here[places, :, -found.values.shape[2] :] = found.values[which]
        return out
