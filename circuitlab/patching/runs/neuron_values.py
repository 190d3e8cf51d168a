"""Neurons of one MLP at every token of whole texts, in one pass up to their layer, with gradients if required.

Blocks before the layer are run, its attention, and its MLP up to the stage; no later block and no unembedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import ConfigError
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.protocol import BlockArguments, Model
from circuitlab.models.steps import mlp_stream
from circuitlab.parts import Stage


@in_ordinary_modes
def neuron_values(
    model: Model,
    tokens: Int[Tensor, "batch seq"],
    layer: int,
    stage: Stage = Stage.POST,
    neurons: Sequence[int] | None = None,
    start: Float[Tensor, "batch seq d_model"] | None = None,
) -> Float[Tensor, "batch seq neuron"]:
    """Values of an MLP's neurons at every token.

    Args:
        model: The model.
        tokens: Prompts of one length.
        layer: Whose MLP.
        stage: Where its neurons are read; by default what goes into the output projection.
        neurons: Which of them, in this order; all by default.
        start: The stream to start from; `model.embedding(tokens)` by default. Where it requires gradients, and they
            are on, they follow to it: the derivative of a neuron with respect to each token's embedding.

    Returns:
        One value a token and neuron.

    Raises:
        ConfigError: No such layer or neuron.
        UnsupportedModelError: The model has no MLPs, or does not show their pre-activations.
    """
    _check_layer(model, layer)
    start = model.embedding(tokens) if start is None else start
    arguments = model.block_arguments(tokens)
    values = model.mlp_hidden(layer, run_to_mlp(model, start, layer, arguments), stage)
    if neurons is None:
        return values
    outside = [n for n in neurons if not 0 <= n < values.shape[-1]]
    if outside:
        raise ConfigError(f"MLP {layer} of model {model.id!r} has neurons 0 to {values.shape[-1] - 1}; got {outside}.")
    return values[..., torch.tensor(list(neurons), dtype=torch.long, device=values.device)]


def run_to_mlp(
    model: Model, start: Float[Tensor, "batch seq d_model"], layer: int, arguments: BlockArguments
) -> Float[Tensor, "batch seq d_model"]:
    """The stream that an MLP reads (before its norm), from the embedding; gradients follow if they are on.

    Args:
        model: A model with MLPs.
        start: The stream on entry to the first block.
        layer: Whose MLP.
        arguments: What blocks are called with at this length.

    Returns:
        The stream at every token.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and start.requires_grad):
        stream = model.run_blocks(start, 0, arguments, layer)
        return mlp_stream(model, layer, stream, arguments)


def _check_layer(model: Model, layer: int) -> None:
    if not 0 <= layer < model.spec.n_layers:
        raise ConfigError(f"model {model.id!r} has layers 0 to {model.spec.n_layers - 1}; got {layer}.")
