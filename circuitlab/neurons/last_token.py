"""One neuron at the last token of many prompts of one length, packed to a memory budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.parts import Stage
from circuitlab.patching.runs.neuron_values import run_to_mlp
from circuitlab.patching.runs.packing import Packer, rows_at_once
from circuitlab.resources import DEFAULT, Resources

Change = Callable[[Float[Tensor, "row seq d_model"], slice], Tensor]


def at_last_token(
    model: Model, arguments: BlockArguments, start: Float[Tensor, "row seq d_model"], layer: int, neuron: int
) -> Float[Tensor, " row"]:
    """A neuron's value at the last token, from the stream on entry to the first block; gradients follow if on."""
    return model.mlp_hidden(layer, run_to_mlp(model, start, layer, arguments)[:, -1], Stage.POST)[:, neuron]


@torch.no_grad()
def last_values(
    model: Model,
    tokens: Int[Tensor, "row seq"],
    layer: int,
    neuron: int,
    *,
    change: Change | None = None,
    resources: Resources = DEFAULT,
) -> Float[Tensor, " row"]:
    """A neuron's value at the last token of each prompt.

    Args:
        model: The model.
        tokens: Prompts of one length.
        layer: The neuron's layer.
        neuron: Its number.
        change: What becomes of the embeddings of a slice of rows; they are run as they are by default.
        resources: Bytes that a run may take.

    Returns:
        One value a prompt.
    """
    arguments = model.block_arguments(tokens[:1])
    found = torch.zeros(len(tokens), dtype=model.dtype, device=model.device)

    def run(part: slice) -> None:
        start = model.embedding(tokens[part])
        start = start if change is None else change(start, part)
        found[part] = at_last_token(model, arguments, start, layer, neuron)

    Packer().run(len(tokens), rows_at_once(model, tokens.shape[1], resources), run)
    return found
