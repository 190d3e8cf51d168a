"""Cohere: attention and MLP in parallel, and logits that are multiplied by a number of the config."""

from typing import Any

from circuitlab.models.families.family import Family

MODEL_TYPES = ("cohere", "cohere2")


def family(config: Any) -> Family:
    """The factor of the logits.

    Returns:
        The record.
    """
    return Family(logit_multiplier=config.logit_scale)
