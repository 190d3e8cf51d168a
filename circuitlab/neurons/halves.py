"""The two halves of a block, so that a pass can stop, and be changed, between attention and MLP.

Whole prompts, every position; gradients follow if they are on and the stream asks for them.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.parts import Slot


def behind_attention(
    model: Model, arguments: BlockArguments, stream: Float[Tensor, "row seq d_model"], layer: int
) -> Float[Tensor, "row seq d_model"]:
    """The stream with what the attention of a block adds to it."""
    rows = stream.shape[:2]
    read = model.read_attention(layer, tuple(Slot), stream.flatten(0, 1))
    q, k, v = (flat.unflatten(0, rows) for flat in read)
    return stream + model.attn_output(layer, model.attend(layer, q, k, v, arguments))


def read_by_mlp(
    model: Model, stream: Float[Tensor, "row seq d_model"], behind: Float[Tensor, "row seq d_model"]
) -> Float[Tensor, "row seq d_model"]:
    """What the MLP of a block reads: the stream behind attention, before it where both stand side by side."""
    return stream if model.spec.parallel else behind
