"""Families of models that need more than the anatomy of their blocks: one file a family, which is found by being here.

A file names the model types of its family (`model_type` in config.json) in `MODEL_TYPES`, and its function `family`
turns a model's config into its `Family`. Whatever is not listed in any file has the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from circuitlab.lazy import modules_in
from circuitlab.models.families.family import Family

__all__ = ["Family", "family_of"]


def family_of(bridge: Any) -> Family:
    """The facts about a booted model.

    Args:
        bridge: A `TransformerBridge`; TransformerLens's own models have no config but the bridge's.

    Returns:
        The facts; the defaults for a family without a file.
    """
    config: Any = bridge.cfg
    name = getattr(config, "architecture", None)
    if name not in _families():
        config = getattr(bridge.original_model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        name = getattr(config, "model_type", None)
    family = _families().get(name) if isinstance(name, str) else None
    return family(config) if family else Family()


@cache
def _families() -> Mapping[str, Callable[[Any], Family]]:
    """By model type, the function of its family's file."""
    return {
        model_type: module.family
        for module in modules_in(__name__, __path__)
        for model_type in getattr(module, "MODEL_TYPES", ())
    }
