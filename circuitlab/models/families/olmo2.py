"""OLMo 2 and 3: norms after attention and MLP and none before, and norms over all heads' queries and keys together."""

from typing import Any

import torch

from circuitlab.models.families.family import Family

MODEL_TYPES = ("olmo2", "olmo3")


def family(config: Any) -> Family:
    """The anatomy finds the norms after attention and MLP, and that there are none before."""
    half = getattr(config, "dtype", None) in (torch.bfloat16, torch.float16)
    return Family(
        norms_span_heads=True,
        refused="TransformerLens rotates queries in float32, which fails in half precision: use float32"
        if half
        else None,
    )
