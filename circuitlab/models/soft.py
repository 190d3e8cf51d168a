"""Heads one by one, with gradients: what `Model.project` and `Model.head_outputs` give without."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import attn_norm, output_weight, projection
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.exclusive import exclusive
from circuitlab.models.protocol import Model
from circuitlab.models.shortcuts import fused_norm
from circuitlab.models.surgery import first_tensor, norm_gain
from circuitlab.parts import Slot


@exclusive
class SoftHeads:
    """Reads and outputs of single heads; gradients follow if they are on, the weights ask for none.

    Args:
        model: A loaded model.

    Raises:
        UnsupportedModelError: It is not one that `load_model` made.
    """

    def __init__(self, model: Model) -> None:
        if not isinstance(model, BridgeModel):
            raise UnsupportedModelError(f"masks are learned on models of load_model; got {type(model).__name__}.")
        self._blocks, self._spec, self.lock = model.bridge.blocks, model.spec, model.lock
        self._model = model
        with self.lock:
            self._norms = tuple(fused_norm(attn_norm(block), model.spec.d_model) for block in self._blocks)
        self._has_post_norm = tuple(model.has_post_norm(layer) for layer in range(model.spec.n_layers))

    def read(
        self, layer: int, slot: Slot, streams: Float[Tensor, "head batch seq d_model"]
    ) -> Float[Tensor, "batch seq head d_head"]:
        """Every head's q, k or v, each from a stream of its own."""
        self._model.require("project")
        weight, bias = projection(self._blocks[layer], slot, self._spec)
        values = torch.einsum("hbsm,hmd->bshd", self._norms[layer](streams), weight)
        return values if bias is None else values + bias

    def outputs(self, layer: int, z: Float[Tensor, "batch seq head d_head"]) -> Float[Tensor, "head batch seq d_model"]:
        """Each head's share of what attention adds to the stream; a post-norm is taken with the scale of this z."""
        self._model.require("head_outputs")
        block = self._blocks[layer]
        shares = torch.einsum("bshd,hdm->hbsm", z, output_weight(block, self._spec))
        if not self._has_post_norm[layer]:
            return shares
        return shares * norm_gain(block.ln1_post, first_tensor(block.attn.o(z.flatten(2))))
