"""Layers, neurons and stages that a caller names, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from circuitlab.errors import ConfigError, UnknownNameError, UnsupportedModelError
from circuitlab.models.protocol import Model
from circuitlab.parts import Stage


def check_mlps(model: Model) -> None:
    """Refuse a model without neurons.

    Raises:
        UnsupportedModelError: It is attention only.
    """
    if not model.spec.has_mlp:
        raise UnsupportedModelError(
            f"model {model.id!r} has no MLPs, so that it has no neurons. Take a model with MLPs, or analyse its heads."
        )


def layers_of(model: Model, layer: int | Sequence[int] | None) -> tuple[int, ...]:
    """The named layers; all of them for None.

    Returns:
        The numbers of the layers.

    Raises:
        ConfigError: No such layer.
        UnsupportedModelError: The model has no MLPs.
    """
    check_mlps(model)
    if layer is None:
        return tuple(range(model.spec.n_layers))
    found = (layer,) if isinstance(layer, int) else tuple(layer)
    wrong = [one for one in found if not 0 <= one < model.spec.n_layers]
    if wrong or not found:
        raise ConfigError(f"model {model.id!r} has layers 0 to {model.spec.n_layers - 1}; got {wrong or 'none'}.")
    return found


def neurons_of(model: Model, layer: int, neurons: int | Sequence[int]) -> tuple[int, ...]:
    """The named neurons, each once.

    Returns:
        The numbers of the neurons, in the given order.

    Raises:
        ConfigError: No such layer, no such neuron, or none at all.
        UnsupportedModelError: The model has no MLPs.
    """
    layers_of(model, layer)
    found = (neurons,) if isinstance(neurons, int) else tuple(dict.fromkeys(neurons))
    count = model.neuron_weight(layer).shape[0]
    wrong = [one for one in found if not 0 <= one < count]
    if wrong or not found:
        raise ConfigError(f"MLP {layer} of model {model.id!r} has neurons 0 to {count - 1}; got {wrong or 'none'}.")
    return found


def stage_of(stage: str | Stage) -> Stage:
    """The named stage.

    Returns:
        The stage.

    Raises:
        UnknownNameError: No such stage.
    """
    if isinstance(stage, Stage):
        return stage
    names = [one.value for one in Stage]
    if stage not in names:
        raise UnknownNameError.of("stage", stage, names)
    return Stage(stage)
