"""What neurons do over a text, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitlab.data.text_values import TextValues
from circuitlab.data.texts import encode_text, shown_tokens
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model
from circuitlab.neurons.chosen import neurons_of, stage_of
from circuitlab.parts import Stage
from circuitlab.patching.runs.neuron_values import neuron_values

STAGES = {
    Stage.PRE: "before the activation function",
    Stage.MID: "after the activation function",
    Stage.POST: "as they go into the output projection",
}


@model_function
@torch.no_grad()
def activations(
    model: Model, text: str, layer: int, neurons: int | Sequence[int], stage: str | Stage = "post"
) -> TextValues:
    """The values of neurons at every token of a text.

    Args:
        model: A model with MLPs.
        text: The text; all of it must fit the context.
        layer: Layer of the neurons.
        neurons: One neuron or several, a series each.
        stage: "pre" (before the activation function), "mid" (after it) or "post" (what goes into the output
            projection: in SoLU models after one more norm, elsewhere the same as "mid").

    Returns:
        The values; a notebook cell displays them, `.save_html(path)` writes the page, `.to_frame()` gives the table.

    Raises:
        ConfigError: No such layer or neuron.
        TokenError: The text has no token, or more than fit the context.
        UnknownNameError: No such stage.
        UnsupportedModelError: The model has no MLPs, or does not show its pre-activations.
    """
    chosen, where = neurons_of(model, layer, neurons), stage_of(stage)
    encoded = encode_text(text, model.text, model.spec.n_ctx)
    tokens = torch.tensor([encoded.ids], device=model.device)
    values = neuron_values(model, tokens, layer, where, chosen)[0]
    which = f"neuron {chosen[0]}" if len(chosen) == 1 else f"{len(chosen)} neurons"
    return TextValues(
        title=f"{which[0].upper()}{which[1:]} of layer {layer} over a text",
        tokens=shown_tokens(text, encoded),
        series=tuple(map(str, chosen)),
        values=values.T.cpu().double().numpy(),
        note=f"Model {model.id}, values {STAGES[where]}. Each neuron has its own scale, symmetric about zero.",
        kind="neuron",
    )
