"""TransformerLens's own models: their blocks run one after the other, whatever is in their config."""

from typing import Any

from circuitlab.models.families.family import Family

MODEL_TYPES = ("TransformerLensNative",)


def family(config: Any) -> Family:
    """The config is the bridge's.

    Returns:
        The record.
    """
    return Family(parallel=False, n_ctx=config.n_ctx)
