"""OLMo 2 and 3: norms after attention and MLP and none before, and norms over all heads' queries and keys together.

In half precision TransformerLens leaves their queries and keys in float32 after the rotation, where transformers casts
them back; without a key-value cache its own forward pass then fails ("expected m1 and m2 to have the same dtype, but
got: float != c10::BFloat16"), so that there is nothing to compare the parts with.
"""

from typing import Any

import torch

from circuitlab.models.families.family import Family

MODEL_TYPES = ("olmo2", "olmo3")


def family(config: Any) -> Family:
    """The anatomy finds the norms after attention and MLP, and that there are none before.

    Returns:
        The record.
    """
    half = getattr(config, "dtype", None) in (torch.bfloat16, torch.float16)
    return Family(
        norms_span_heads=True,
        refused="TransformerLens rotates queries in float32, which fails in half precision: use float32"
        if half
        else None,
    )
