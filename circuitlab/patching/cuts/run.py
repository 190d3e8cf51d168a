"""Run circuits that cut more edges than one that has been run: what their new cuts change, and nothing else.

Layer by layer, what readers read in them is added up (`sums`); heads and MLPs follow where that differs from the
circuit that they are run from.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.patching.cuts.heads import Heads
from circuitlab.patching.cuts.setting import ANSWER
from circuitlab.patching.cuts.sums import Sums, joined
from circuitlab.patching.cuts.variants import Variants, runs


class CutRun:
    """Circuits on their way.

    Args:
        sums: The circuits. Where these are computed everywhere, what readers read and heads make of it is kept, for a
            state.
    """

    def __init__(self, sums: Sums) -> None:
        self.sums, self.setting, self.state, self.model = sums, sums.setting, sums.state, sums.setting.model
        # What readers read, where it differs; kept for a state alone.
        self.streams = dict[int, Variants]() if sums.everywhere else None
        self.heads = Heads(self.sums, self.streams)

    def finished(self) -> Float[Tensor, "circuit batch d_model"]:
        """Take all steps; what the logits read at the answer position."""
        for layer in range(self.model.spec.n_layers):
            self.heads.speak(layer)
            if self.model.spec.has_mlp:
                self._mlp(layer)
        column = len(self.setting.layout.readers) - 1
        out = self.state.streams[column][:, 0].repeat(self.sums.n_circuits, 1, 1)
        found = self.sums.read(column, ANSWER)
        if found is not None:
            final = joined([x.clone() for x in self.sums.chunks(found)])
            for places, which in runs(found.of):
                out[places] = final[which, :, 0]
        return out

    def _mlp(self, layer: int) -> None:
        """What a layer's MLP says."""
        sums = self.sums
        writer, column = sums.places.mlps[layer]
        need = int(sums.needed[writer])
        found = sums.read(column, need) if need else None
        if found is None:
            return
        own = sums.at(need, self.state.mlps[layer][None])[0]
        said, start = self.setting.memory(("said", writer), found.n_variants, *found.base.shape), 0
        for x in sums.chunks(found):
            if self.streams is not None:
                self.streams[column] = Variants(x.clone(), found.of)
            here = said[start : start + len(x)]
            start += len(x)
            torch.sub(self.model.mlp_output(layer, x), own, out=here)
        sums.said[writer] = Variants(said, found.of)
