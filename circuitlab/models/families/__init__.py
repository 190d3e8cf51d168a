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
    """
    architecture = getattr(bridge.cfg, "architecture", None)
    if architecture in _families():
        return _made(bridge.cfg, architecture)
    config: Any = getattr(bridge.original_model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return _made(config, getattr(config, "model_type", None))


def _made(config: Any, model_type: Any) -> Family:
    found = _families().get(model_type) if isinstance(model_type, str) else None
    return found(config) if found else Family()


@cache
def _families() -> Mapping[str, Callable[[Any], Family]]:
    """By model type, the function of its family's file."""
    return {
        model_type: module.family
        for module in modules_in(__name__, __path__)
        for model_type in getattr(module, "MODEL_TYPES", ())
    }
