"""Granite: a Llama whose embedding, scores, sublayers and logits are multiplied by numbers of its config.

The model's own code applies those of the embedding and of the scores.
"""

from typing import Any

from circuitlab.models.families.family import Family

MODEL_TYPES = ("granite",)


def family(config: Any) -> Family:
    """What is left: outputs of sublayers on their way to the stream, and logits.

    Returns:
        The record.
    """
    return Family(residual_multiplier=config.residual_multiplier, logit_multiplier=1 / config.logits_scaling)
