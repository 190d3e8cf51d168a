"""What edges are worth in a circuit that has been run, to first order: one backward pass through what it keeps.

    worth(u -> v) = sum over positions and dimensions of (r_u - a_u) . dm/dx_v, the gradient taken in that circuit

Every reader reads a stream of its own there, so the pass goes reader by reader: from the logits to the layer that is
asked for, along kept edges alone. In the whole model this is EAP with its sign turned.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.metrics import Metric
from circuitlab.models.steps import attend
from circuitlab.parts import Slot
from circuitlab.patching.cuts.setting import EVERYWHERE, Setting, needed_at
from circuitlab.patching.cuts.state import CutState
from circuitlab.patching.gradients.slopes import judged

SLOTS = tuple(Slot)


class CutSlopes:
    """A backward pass through circuits of which each keeps fewer edges than the one before.

    Args:
        setting: The batch.
        state: The first of them.
        metric: What is differentiated.
        batch: The prompts, with the clean run's logits as reference where the metric needs them.
    """

    def __init__(self, setting: Setting, state: CutState, metric: Metric, batch: PairBatch) -> None:
        self._setting, self._model = setting, setting.model
        self._metric, self._batch = metric, batch
        self._layout, self._places = setting.layout, setting.places
        self._state, self._needed = state, needed_at(setting.places, state.mask)
        self._rows = torch.arange(len(batch), device=setting.replaced.device)
        # Gradients at what writers say, through the readers of layers from this one on.
        self._behind, self._from = torch.zeros_like(setting.replaced), self._model.spec.n_layers + 1

    def goes_on_to(self, metric: Metric, layer: int) -> bool:
        """Whether this layer can be asked about next."""
        return metric is self._metric and layer < self._from

    @torch.enable_grad()
    def worth(self, state: CutState, layer: int) -> tuple[list[int], Float[Tensor, "writer reader"]]:
        """How much the metric changes, to first order, when an edge into a reader of a layer is cut.

        Layers behind the next one are gone through once and for all, in the circuit that they are first met in.

        Args:
            state: The circuit.
            layer: The layer, before that of the last call; as many as there are layers: the logits.

        Returns:
            The readers that are heard, and for each of them one number a writer, summed over examples: 0 where the
            metric does not follow the logits. Writers say what they say in the clean run; what is no edge has a number
            without a meaning.
        """
        self._state, self._needed = state, needed_at(self._places, state.mask)
        while self._from > layer + 1:
            self._from -= 1
            self._readers(self._from, for_good=True)
        found = self._readers(layer, for_good=False)
        if not found:
            return [], self._behind.new_zeros(len(self._layout.writers), 0)
        at_readers = torch.stack(list(found.values())).flatten(1)
        return list(found), self._setting.replaced.flatten(1) @ at_readers.T

    def _readers(self, layer: int, *, for_good: bool) -> dict[int, Float[Tensor, "batch token d_model"]]:
        """Gradients at the readers of a layer, or of the logits behind the last one."""
        behind = self._behind
        if layer == self._model.spec.n_layers:
            found = self._logits()
        else:
            found = self._mlp(layer) if self._model.spec.has_mlp else {}
            self._behind = behind.clone()
            self._hand_on(found)
            found |= self._attention(layer)
            self._behind = behind
        if for_good:
            self._hand_on(found)
        return found

    def _logits(self) -> dict[int, Float[Tensor, "batch token d_model"]]:
        final = self._state.streams[-1].detach().requires_grad_()
        total = judged(self._model, self._metric, self._batch, final[:, 0]).sum()
        found = self._behind.new_zeros(self._behind.shape[1:])
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, final)
            found[self._rows, self._setting.answer_at - self._setting.since] = gradient[:, 0]
        return {len(self._layout.readers) - 1: found}

    def _hand_on(self, gradients: dict[int, Float[Tensor, "batch token d_model"]]) -> None:
        """From readers to the writers that they hear."""
        if gradients:
            heard = torch.from_numpy(self._state.mask[:, list(gradients)]).to(self._behind)
            self._behind.flatten(1).addmm_(heard, torch.stack(list(gradients.values())).flatten(1))

    def _mlp(self, layer: int) -> dict[int, Float[Tensor, "batch token d_model"]]:
        writer, column = self._places.mlps[layer]
        if not self._needed[writer]:
            return {}
        stream, gradient = self._state.streams[column], self._behind[writer]
        if self._needed[writer] == EVERYWHERE:
            read = stream.detach().requires_grad_()
            return {column: torch.autograd.grad(self._model.mlp_output(layer, read), read, gradient)[0]}
        at = self._rows, self._setting.answer_at - self._setting.since
        read, found = stream[at].detach().requires_grad_(), torch.zeros_like(stream)
        found[at] = torch.autograd.grad(self._model.mlp_output(layer, read), read, gradient[at])[0]
        return {column: found}

    def _attention(self, layer: int) -> dict[int, Float[Tensor, "batch token d_model"]]:
        first, n_heads, since = self._places.heads[layer], self._model.spec.n_heads, self._setting.since
        slots = self._places.slots[layer]
        heard = self._state.mask[:, slots].any(0) & (self._needed[first : first + n_heads] > 0)
        open_slots = [number for number in range(len(SLOTS)) if heard[number].any()]
        if not open_slots:
            return {}
        early = [values[:, :since] for values in self._state.slots[layer]]
        late = [values[:, since:].detach() for values in self._state.slots[layer]]
        leaves = [late[number].requires_grad_() for number in open_slots]
        q, k, v = late[0], *(torch.cat([early[number], late[number]], 1) for number in (1, 2))
        z = attend(self._model, layer, {Slot.Q: q, Slot.K: k, Slot.V: v}, self._setting.arguments)
        behind = self._behind[first : first + n_heads]
        at_slots = torch.autograd.grad(self._model.head_outputs(layer, z), leaves, behind)
        found = dict[int, Tensor]()
        for number, gradient in zip(open_slots, at_slots, strict=True):
            columns = slots[number].tolist()
            read = torch.stack([self._state.streams[column] for column in columns]).requires_grad_()
            values = self._model.project(layer, SLOTS[number], range(n_heads), read)
            at_streams = torch.autograd.grad(values, read, gradient.movedim(2, 0))[0]
            found |= {columns[head]: at_streams[head] for head in np.flatnonzero(heard[number])}
        return found
