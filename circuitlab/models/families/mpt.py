"""MPT: scores with a bias by distance (ALiBi), and MLPs that add the stream themselves.

The biases are made once, for the longest prompt; the model's own attention code adds them to the scores.
"""

from typing import Any

from circuitlab.models.families.family import Family

MODEL_TYPES = ("mpt",)


def family(config: Any) -> Family:
    """Longer prompts than `max_seq_len` have no biases.

    Returns:
        The record.
    """
    return Family(adds_residual=frozenset({"mlp"}), n_ctx=config.max_seq_len)
