"""BLOOM: scores with a bias by distance (ALiBi), and attention and MLPs that add the stream themselves."""

from typing import Any

from circuitlab.models.families.family import Family

MODEL_TYPES = ("bloom",)


def family(config: Any) -> Family:
    """The model's own attention code adds the biases to the scores.

    Returns:
        The record.
    """
    normed = config.apply_residual_connection_post_layernorm
    return Family(
        adds_residual=frozenset({"attn", "mlp"}),
        by_row_and_head=frozenset({"alibi"}),
        refused="the stream is normed before each addition, so that it is no sum of parts" if normed else None,
    )
