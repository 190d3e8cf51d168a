"""Pickled and copied models: no weights, but how to load them again, and their digest to compare on arrival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitlab.errors import ModelError
from circuitlab.models.modes import in_ordinary_modes

Recipe = Callable[..., Any]


@in_ordinary_modes
def loaded_again(recipe: Recipe, device: str, digest: str) -> Any:
    """Load a model that was pickled or copied.

    Args:
        recipe: What loads it, given its device.
        device: Where it was.
        digest: Its `weights_sha256()`.

    Raises:
        ModelError: It has other weights now.
    """
    model = recipe(device=device)
    if (found := model.weights_sha256()) != digest:
        raise ModelError(
            f"model {model.id!r} has other weights ({found[:12]}) than the one that was pickled or copied "
            f"({digest[:12]}), which was edited after it was loaded, or whose files have changed. "
            "Save the edited model (save_pretrained) and load its folder."
        )
    return model


def how_to_load(model: Any) -> tuple[Callable[..., Any], tuple[Recipe, str, str]]:
    """What `__reduce__` returns for a model.

    Raises:
        ModelError: It was booted by its user, who alone knows how.
        UnsupportedModelError: There are hooks on it, which would be lost.
    """
    if model.recipe is None:
        raise ModelError(
            f"model {model.id!r} was booted by its user and has no name to be loaded again by: it can neither be "
            "pickled nor copied. Load it by its name or folder, or boot it in each process."
        )
    model.refuse_hooks("a pickled or copied model, which is loaded again,")
    return loaded_again, (model.recipe, str(model.device), model.weights_sha256())
