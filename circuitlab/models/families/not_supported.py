"""Families that TransformerLens wraps and whose parts do not add up to the whole, each with its reason."""

from typing import Any

from circuitlab.models.families.family import Family

NO_MLP_MODULE = "the MLPs are not modules of their own"
REASONS = {
    "bitnet": "a norm spans the outputs of all heads, so that heads are not independent",
    "hrm_text": "the layers run several times",
    "modernbert-decoder": "a layer with an activation and a norm comes before the unembedding",
    "opt": NO_MLP_MODULE,
    "xglm": NO_MLP_MODULE,
}
MODEL_TYPES = tuple(REASONS)


def family(config: Any) -> Family:
    """The reason; what was measured comes before it in the message.

    Returns:
        The record.
    """
    return Family(refused=REASONS[config.model_type])
