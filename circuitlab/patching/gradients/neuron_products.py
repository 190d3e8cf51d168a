"""Neurons of MLPs times gradients: the difference of each to its replacement times the gradient of the metric.

The gradient at a neuron is that at what its MLP adds to the stream, pulled back through the output projection and any
post-norm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.models.changes import neuron_gradients
from circuitlab.models.protocol import Model
from circuitlab.models.traced import PassGradients, Traced


class NeuronProducts:
    """The difference of every neuron between the clean and the corrupted run, ready to be multiplied with gradients.

    Args:
        model: A model with MLPs.
        clean: The clean run, on a window.
        corrupt: The corrupted run, on whole prompts.
    """

    @torch.no_grad()
    def __init__(self, model: Model, clean: Traced, corrupt: Traced) -> None:
        self._model = model
        window, last = clean.window, model.spec.n_layers - 1
        self._differences: list[Tensor] = []
        for layer in range(model.spec.n_layers):
            other = _neurons(model, corrupt, layer)
            self._differences.append(_neurons(model, clean, layer) - (other if layer == last else window.of(other)))

    def scores(self, traced: Traced, found: PassGradients) -> Float[Tensor, "batch layer neuron"]:
        """The products, summed over positions.

        Args:
            traced: A pass on the window.
            found: Its gradients.

        Returns:
            Products `[batch, layer, neuron]`, in the metric's unit.
        """
        layers = []
        for layer, difference in enumerate(self._differences):
            gradient, read = found.blocks[layer].mlp, traced.blocks[layer].mlp_read
            assert gradient is not None, "a model with MLPs has gradients after them"
            assert read is not None, "called for models with MLPs only"
            layers.append((difference * neuron_gradients(self._model, layer, read, gradient)).sum(1))
        return torch.stack(layers, 1)


def _neurons(model: Model, run: Traced, layer: int) -> Float[Tensor, "batch _ neuron"]:
    """What goes into an MLP's output projection; in the last block at the answer alone."""
    read = run.blocks[layer].mlp_read
    assert read is not None, "called for models with MLPs only"
    return model.mlp_hidden(layer, read.detach())
